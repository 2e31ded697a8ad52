"""pydantic's findings in our own words: where, what was got, what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def explain(
    finding: Mapping[str, Any], place: str, shown: Callable[[Any], str] | None = None
) -> str:
    """One finding of a ValidationError as `place: got ...; expected ...`.

    shown: how the wrong value is put into words; without it no value is part of the message.
    """
    if finding["type"] == "missing":
        return f"{place}: got nothing; expected a value"
    message = finding["msg"].removeprefix("Value error, ")[:200]
    if finding["type"] == "value_error" or shown is None:  # our own messages say what was got
        return f"{place}: {message}"
    return f"{place}: got {shown(finding['input'])}; {message[0].lower()}{message[1:]}"
