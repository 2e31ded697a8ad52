"""What all job files have in common: strictness, names, prompts, the error for a wrong file."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MAX_PIXELS = 64_000_000
"""Pictures with more pixels are not decoded, unless a job sets its own limit."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class JobError(ValueError):
    """A job file that cannot be used; the message says got, expected and what to do."""


OtherBases = Literal["refuse", "warn", "allow"]
"""What becomes of a slider on another base of the family that it was trained on: it is refused, it
is used and every output has a note, or it is used."""


class Settings(BaseModel):
    """A section of a job file: unknown keys are errors, and a value never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prompts(Settings):
    """The prompts that a slider moves between (docs/method.md, "The paper's equations")."""

    target: str
    """c_t: what the slider acts on, such as "person"."""
    positive: str
    """c+: the attribute at its high end, such as "person, smiling"."""
    negative: str
    """c-: the attribute at its low end, such as "person, frowning"."""
    neutral: str | None = None
    """c_n: the centre of the target; the target prompt where left out."""
    action: Literal["enhance", "erase"] = "enhance"
    """`enhance`: strength 1 moves towards the positive prompt; `erase`: away from it."""
    disentangle: list[str] = []
    """Attributes to hold still, such as [male, female]: each is put in front of all four prompts,
    and the target sums the differences over them (Eq 8 of Concept Sliders, arXiv 2311.12092)."""

    def with_attributes(self, text: str) -> list[str]:
        """One of the prompts, once for every attribute to disentangle."""
        return [f"{word} {text}" for word in self.disentangle] or [text]


def check_name(name: str) -> str:
    """The name of a slider, a run or a key, which becomes part of a path. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"got name {name!r}; expected 1-64 of a-z, 0-9, '-' and '_', starting with a letter or "
            "digit"
        )
    return name


def with_new_name(given: Any, old: str, new: str) -> Any:
    """Settings in which `old`, the name of `new` in job files of earlier versions, is called `new`.

    Raises ValueError where both are given.
    """
    if not isinstance(given, dict) or old not in given:
        return given
    if new in given:
        raise ValueError(f"got both {new} and {old}, its name in earlier versions; expected {new}")
    return {new if key == old else key: value for key, value in given.items()}
