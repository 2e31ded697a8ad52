"""What the HTTP side asks the engine for, and what comes back, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bs_ray.editing.views import Edit
from bs_ray.sliders.card import Card
from bs_ray.sliders.mix import Mix


class Busy(Exception):
    """The task would be late. It may safely be sent again after `retry_after_s`."""

    def __init__(self, detail: str, retry_after_s: float = 1.0):
        super().__init__(detail, retry_after_s)
        self.detail, self.retry_after_s = detail, retry_after_s


@dataclass(frozen=True, kw_only=True)
class _Task:
    sliders: Mapping[str, str] = field(default_factory=dict)
    """The sliders that the mixes name: name@version -> the place that the registry resolves."""
    words: Mapping[str, Card] = field(default_factory=dict)
    """The sliders of words that the mixes name, by reference; those that were published are among
    `sliders`, too."""
    within_s: float = 30.0
    """How long the caller waits for the result."""
    partials: int = 0
    """How many previews to send on the way."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """Where the task belongs in a distributed trace."""

    def predictions(self, mixes: Sequence[Mix]) -> int:
        """What each mix asks the denoiser for in a step, beside its photo's own: one for itself,
        and one for every prompt of its words."""
        prompts = {reference: len(card.pulls) for reference, card in self.words.items()}
        return sum(1 + sum(prompts.get(r, 0) for r in mix.lora_scales) for mix in mixes)


@dataclass(frozen=True, kw_only=True)
class EditTask(_Task):
    """Views of one photo, all of it or some of its regions, under one or several mixes."""

    edits: Sequence[Edit]
    """One for each view: a picture of the size at which the base sees it. They share their mixes
    and their settings, in which `region` is photo."""

    @property
    def rows(self) -> int:
        """Each view is a row under each mix."""
        return sum(len(edit.mixes) for edit in self.edits)

    @property
    def weight(self) -> int:
        """`rows`, with those that words add."""
        return sum(self.predictions(edit.mixes) for edit in self.edits)


@dataclass(frozen=True, kw_only=True)
class GenerateTask(_Task):
    """One prompt and seed under one or several mixes."""

    prompt: str
    mixes: Sequence[Mix]
    seed: int = 0
    steps: int
    guidance_scale: float = 4.0
    floats: bool = False
    """Whether the pictures are float32; else they are rounded to uint8."""

    @property
    def rows(self) -> int:
        return len(self.mixes)

    @property
    def weight(self) -> int:
        """`rows`, with those that words add."""
        return self.predictions(self.mixes)


Task = EditTask | GenerateTask


Changes = list[np.ndarray | None]
"""What a mix does to each view of an EditTask: float32 [h, w, 3] to be added to its levels in
[0, 255]; None where it does nothing."""


@dataclass(frozen=True)
class Step:
    """A step is done."""

    step: int
    steps: int


@dataclass(frozen=True)
class Partial:
    """What the pictures look like so far."""

    index: int
    changes: list[Changes] = field(default_factory=list)
    """Of an edit: one for each mix."""
    pictures: list[np.ndarray] = field(default_factory=list)
    """Of a generation: uint8 RGB [H, W, 3], one for each mix."""


@dataclass(frozen=True)
class Result:
    """What becomes of the task."""

    changes: list[Changes] = field(default_factory=list)
    """Of an edit: one for each mix."""
    pictures: list[np.ndarray] = field(default_factory=list)
    """Of a generation: RGB [H, W, 3] in [0, 255], one for each mix; float32 or uint8, as the task's
    `floats` asks."""
    notes: list[str] = field(default_factory=list)
    """What a caller should know of the pictures."""
    batch_rows: float = 1.0
    """Edits that shared a step with this one, itself included; the mean over its steps."""
    queue_s: float = 0.0
    compute_s: float = 0.0


Event = Step | Partial | Result
