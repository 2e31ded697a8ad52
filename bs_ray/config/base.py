"""Every knob, once. A job file is a value of one class here; `load` reads and checks it.

No torch and no Ray in this module: `bs-ray train job.yaml` answers a typing error at once.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class JobError(ValueError):
    """A job file that cannot be used; the message says got, expected and what to do."""


def check_name(name: str) -> str:
    """A slider's or run's name: it becomes part of a path, so its letters are limited."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"got name {name!r}; expected 1-64 of a-z, 0-9, '-' and '_', starting with a letter or "
            "digit"
        )
    return name


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prompts(Settings):
    """What a slider moves between (METHOD 1)."""

    target: str
    """c_t: what the slider acts on, such as "person"."""
    positive: str
    """c+: the attribute at its high end, such as "person, smiling"."""
    negative: str
    """c-: the low end, such as "person, frowning"."""
    neutral: str | None = None
    """c_n: the centre of the target; the target prompt where left out."""
    action: Literal["enhance", "erase"] = "enhance"
    """`enhance`: strength 1 moves towards the positive prompt; `erase`: away from it."""
    disentangle: list[str] = []
    """Attributes to hold still, such as [male, female]: each is put in front of all four prompts,
    and the target sums the differences over them (Concept Sliders, Eq 8)."""
