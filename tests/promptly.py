"""How long a refusal may take on a machine that others use too."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_PROMPT_S = 30.0
"""Ours come within 5 s on a quiet machine; the libraries' own time-outs take a minute and more."""


@contextmanager
def promptly() -> Iterator[None]:
    """Fail where the body waits for a library's time-out instead of ours."""
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    assert took_s < _PROMPT_S, f"got {took_s:.0f} s; expected less than {_PROMPT_S:g}"
