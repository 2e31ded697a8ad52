"""What the HTTP side asks of the side that computes, and what comes back: values, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bs_ray.editing.editor import Edit, Edited


class Busy(Exception):
    """No room in time; asking again after `retry_after_s` is safe."""

    def __init__(self, detail: str, retry_after_s: float = 1.0):
        super().__init__(detail, retry_after_s)
        self.detail, self.retry_after_s = detail, retry_after_s


@dataclass(frozen=True, kw_only=True)
class _Task:
    sliders: Sequence[str] = ()
    """References name@version of all sliders that mixes name, which they do so."""
    within_s: float = 30.0
    """How long the asker waits for the result."""
    partials: int = 0
    """Previews wanted on the way."""
    floats: bool = False
    """Send float32 pixels back, not rounded ones."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """Where this belongs in a distributed trace."""


@dataclass(frozen=True, kw_only=True)
class EditTask(_Task):
    """One photo under one or several mixes."""

    edit: Edit

    @property
    def rows(self) -> int:
        return len(self.edit.mixes)


@dataclass(frozen=True, kw_only=True)
class GenerateTask(_Task):
    """One prompt and seed under one or several mixes."""

    prompt: str
    mixes: Sequence[Mapping[str, float]]
    seed: int = 0
    steps: int
    guidance_scale: float = 4.0

    @property
    def rows(self) -> int:
        return len(self.mixes)


Task = EditTask | GenerateTask


@dataclass(frozen=True)
class Step:
    """A step is done."""

    step: int
    steps: int


@dataclass(frozen=True)
class Partial:
    """What the pictures look like so far."""

    index: int
    pictures: list[np.ndarray]
    """uint8 RGB [H, W, 3], one for each mix."""


@dataclass(frozen=True)
class Result:
    """The pictures."""

    outputs: list[Edited]
    """One for each mix; pixels as `floats` says."""
    batch_rows: float
    """Edits that shared a step with it, itself included; the mean over its steps."""
    queue_s: float
    compute_s: float


Event = Step | Partial | Result
