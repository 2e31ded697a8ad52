"""The frozen base as a teacher: its predictions for the prompts of every slider.

Legend: B rows, M sliders; x_t and predictions [B, C, h, w]; t int64 [B].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from bs_ray.config import Prompts
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.words import MIN_GAP, PromptsDoNotSeparate, check_known


@dataclass(frozen=True)
class TeacherOutput:
    """The frozen base's predictions for B rows, for each of M sliders."""

    neutral: Tensor  # [M, B, C, h, w]: e(x_t, c_n); the same tensor where the prompts are the same
    direction: Tensor  # [M, B, C, h, w]: e(x_t, c+) - e(x_t, c-), negated for action: erase


class Teacher:
    """e(x_t, c_n) and e(x_t, c+) - e(x_t, c-) of the frozen base, one forward pass for all sliders.

    With attributes to disentangle, every prompt exists once for each attribute ("male person",
    "female person"). A row's `turn` chooses among its neutral and target prompts, and the direction
    sums the differences over all attributes (Concept Sliders, Eq 8).
    """

    def __init__(self, model: DiffusionModel, concepts: Mapping[str, Prompts]):
        self.model, self.concepts = model, dict(concepts)
        texts = texts_of(self.concepts)
        self._number = {text: number for number, text in enumerate(texts)}
        self._conditions = model.embed(texts)

    def targets(self, slider: Tensor, turn: Tensor) -> Condition:
        """The target prompts c_t of R rows, given each row's slider int64 [R] and turn int64
        [R]."""
        names = [_targets(prompts) for prompts in self.concepts.values()]
        pairs = zip(slider.tolist(), turn.tolist(), strict=True)
        return self.conditions([names[m][k % len(names[m])] for m, k in pairs])

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, turn: Tensor) -> TeacherOutput:
        """The predictions. An attached slider bank has no part in them, since no LoRA scales are
        set."""
        columns: dict[tuple[str, ...], Tensor | None] = {}
        neutrals = []
        for prompts in self.concepts.values():
            names = _neutrals(prompts)
            neutrals.append(tuple(names[k % len(names)] for k in turn.tolist()))
            for text in chain(*_ends(prompts)):
                columns[(text,) * len(x_t)] = None
        columns |= dict.fromkeys(neutrals)
        rows = self.conditions([text for column in columns for text in column])
        count = len(columns)
        predicted = self.model.predict(x_t.repeat(count, 1, 1, 1), t.repeat(count), rows)
        by_texts = dict(zip(columns, predicted.chunk(count), strict=True))

        def ends(texts: list[str]) -> Tensor:
            return torch.stack([by_texts[(text,) * len(x_t)] for text in texts]).sum(0)

        directions = []
        for prompts in self.concepts.values():
            positive, negative = _ends(prompts)
            sign = 1 if prompts.action == "enhance" else -1
            directions.append(sign * (ends(positive) - ends(negative)))
        return TeacherOutput(torch.stack([by_texts[n] for n in neutrals]), torch.stack(directions))

    def conditions(self, texts: list[str]) -> Condition:
        """Condition rows of any of the sliders' prompts, or of ""."""
        numbers = torch.tensor([self._number[text] for text in texts])
        return self._conditions.rows(numbers.to(self._conditions.tokens.device))

    def check_gap(self, x_t: Tensor, t: Tensor) -> dict[str, float]:
        """By slider, the norm of e(c+) - e(c-) relative to that of e(c_n).

        Raises PromptsDoNotSeparate for a slider whose difference is rounding alone, or said in
        words that the base does not know.
        """
        for name, prompts in self.concepts.items():
            check_known(name, (prompts.positive, prompts.negative), self.model.readers())
        predicted = self(x_t, t, torch.zeros_like(t))
        size = predicted.neutral.flatten(1).norm(dim=1)
        gaps = predicted.direction.flatten(1).norm(dim=1) / size
        found = dict(zip(self.concepts, gaps.tolist(), strict=True))
        for name, gap in found.items():
            if gap < MIN_GAP:
                self._refuse(name, gap, x_t, t)
        return found

    def _refuse(self, name: str, gap: float, x_t: Tensor, t: Tensor) -> None:
        positive, negative = (ends[0] for ends in _ends(self.concepts[name]))
        with torch.no_grad():
            rows = self.conditions([positive] * len(x_t) + [negative] * len(x_t))
            high, low = self.model.predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), rows).chunk(2)
        cosine = float(torch.cosine_similarity(high.flatten(), low.flatten(), dim=0))
        raise PromptsDoNotSeparate.measured(name, (positive, negative), gap, cosine)


def texts_of(concepts: Mapping[str, Prompts]) -> list[str]:
    """All prompts of some sliders, each once, after the empty one."""
    found = {"": None}
    for prompts in concepts.values():
        found |= dict.fromkeys((*_targets(prompts), *_neutrals(prompts), *chain(*_ends(prompts))))
    return list(found)


def forwards_a_row(concepts: Mapping[str, Prompts]) -> int:
    """How many frozen forwards a row costs: one for each distinct neutral prompt, two for a
    slider."""
    neutrals = {tuple(_neutrals(prompts)) for prompts in concepts.values()}
    return len(neutrals) + sum(len(_ends(p)[0]) * 2 for p in concepts.values())


def _targets(prompts: Prompts) -> list[str]:
    return prompts.with_attributes(prompts.target)


def _neutrals(prompts: Prompts) -> list[str]:
    neutral = prompts.neutral if prompts.neutral is not None else prompts.target
    return prompts.with_attributes(neutral)


def _ends(prompts: Prompts) -> tuple[list[str], list[str]]:
    """(c+, c-), each once for every attribute to disentangle."""
    return prompts.with_attributes(prompts.positive), prompts.with_attributes(prompts.negative)
