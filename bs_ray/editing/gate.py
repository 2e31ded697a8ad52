"""The quality gate: measure an edit against its photo; make an edit that fails again, weaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bs_ray.config import QualityGate
from bs_ray.editing.editor import Edit, Edited, Editor, Outcome, to_uint8
from bs_ray.images.pixels import images_of
from bs_ray.judges.load import JudgeSet
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.mix import Mix


@dataclass(frozen=True)
class _Trial:
    """One output on its way through the gate."""

    edit: int
    """Number of its edit."""
    place: int
    """Its place among the edit's outputs."""
    mix: Mix
    backed_off: int = 0
    """How often it was made weaker."""


def check_gate(judges: JudgeSet, gate: QualityGate) -> None:
    """Raise BaseNotFound where a judge that the gate needs is not at hand."""
    needed = ["identity", *(["clip"] if gate.effect else [])]
    if missing := [name for name in needed if name in judges.absent]:
        raise BaseNotFound(
            f"gate: got no {' and no '.join(missing)} judge beside the base; expected it in "
            "<base>/judges. Put it there, or leave `gate` out"
        )


class GatedEditor:
    """An Editor that measures its outputs; `edit` is like `Editor.edit`."""

    def __init__(self, editor: Editor, judges: JudgeSet, gate: QualityGate):
        """Raises BaseNotFound as `check_gate`."""
        check_gate(judges, gate)
        self.editor, self.judges, self.gate = editor, judges, gate

    def mix(self, strengths: dict[str, float]) -> Mix:
        """`Editor.mix`."""
        return self.editor.mix(strengths)

    def edit(self, edits: Sequence[Edit]) -> list[Outcome]:
        """Every edit's outputs; each is the strongest of its trials that passes.

        `measured` holds what was found. A note says how far strengths were lowered, or that even
        the last trial fails.
        """
        outcomes = self.editor.edit(edits)
        trials = [
            _Trial(i, k, mix)
            for i, outcome in enumerate(outcomes)
            if isinstance(outcome, list)
            for k, mix in enumerate(edits[i].mixes)
            if mix.lora_scales
        ]
        while trials:
            failing = []
            for trial, seen in zip(trials, self._measure(edits, outcomes, trials), strict=True):
                output = self._marked(trial, _output(outcomes, trial), seen)
                outcomes[trial.edit][trial.place] = output  # type: ignore[index]
                if seen["identity"] < self.gate.identity and trial.backed_off < self.gate.retries:
                    failing.append(trial)
            trials = [self._weaker(trial) for trial in failing]
            again = [replace(edits[trial.edit], mixes=[trial.mix]) for trial in trials]
            for trial, outcome in zip(trials, self.editor.edit(again), strict=True):
                outcomes[trial.edit][trial.place] = outcome[0]  # type: ignore[index]
        return outcomes

    def _weaker(self, trial: _Trial) -> _Trial:
        mix = self.mix({name: s * self.gate.backoff for name, s in trial.mix.strengths.items()})
        return replace(trial, mix=mix, backed_off=trial.backed_off + 1)

    def _marked(self, trial: _Trial, output: Edited, seen: dict[str, float]) -> Edited:
        notes = list(output.notes)
        if trial.backed_off:
            share = self.gate.backoff**trial.backed_off
            notes.append(f"strengths x{share:.2g} to keep the identity")
        for name, limit in (("identity", self.gate.identity), ("effect", self.gate.effect)):
            if limit and seen[name] < limit:
                notes.append(f"{name} {seen[name]:.2f} is below {limit:g}")
        return replace(output, notes=tuple(notes), measured=seen)

    @torch.no_grad()
    def _measure(
        self, edits: Sequence[Edit], outcomes: list[Outcome], trials: list[_Trial]
    ) -> list[dict[str, float]]:
        """`identity`, and `effect` where the gate asks for it, of every trial."""
        found = []
        for trial in trials:
            photo = images_of(edits[trial.edit].pixels)[None]
            picture = images_of(to_uint8(_output(outcomes, trial).pixels))[None]
            assert self.judges.identity
            seen = {"identity": float(self.judges.identity.similarity(picture, photo)[0])}
            if self.gate.effect:
                seen["effect"] = self._effect(picture, photo, trial.mix)
            found.append(seen)
        return found

    def _effect(self, picture: Tensor, photo: Tensor, mix: Mix) -> float:
        clip, both, moves = self.judges.clip, torch.cat([picture, photo]), []
        assert clip
        for reference in mix.lora_scales:
            prompts = self.editor.sliders[reference].card.prompts
            if prompts:
                score = clip.score(both, prompts.positive) - clip.score(both, prompts.negative)
                sign = float(np.sign(mix.strengths[reference]))
                moves.append(float(score[0] - score[1]) * sign)
        return float(np.mean(moves)) if moves else 0.0


def _output(outcomes: list[Outcome], trial: _Trial) -> Edited:
    outcome = outcomes[trial.edit]
    assert isinstance(outcome, list)
    return outcome[trial.place]
