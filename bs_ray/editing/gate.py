"""The quality gate: measure an edit against its photo; make an edit that fails again, weaker."""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bs_ray.config import QualityGate
from bs_ray.editing.editor import Edit, Edited, Editor, Outcome, to_uint8
from bs_ray.images.faces import CenterFace, Face, FaceDetector, need_centerface
from bs_ray.images.regions import Region
from bs_ray.judges.judge import JudgeUnavailable, Subject, largest
from bs_ray.judges.load import OWN, Panel, find_judges
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


def gate_judges(base: Path, gate: QualityGate) -> Panel:
    """The judges of a gate. base: a base's folder.

    Raises JudgeUnavailable where one that the gate needs is not at hand, and FacesUnavailable.
    """
    judges = find_judges(base, gate.judges, OWN)
    needed = {"identity": judges.identity, **({"clip": judges.clip} if gate.effect else {})}
    if missing := [name for name, found in needed.items() if not found]:
        raise JudgeUnavailable(
            f"gate: got no {' and no '.join(missing)} judge; expected one beside the base, in "
            "<base>/judges, or in the setting gate.judges. Or leave `gate` out"
        )
    if judges.identity[0].needs_face:
        need_centerface()
    return judges


class GatedEditor:
    """An Editor that measures its outputs; `edit` is like `Editor.edit`."""

    def __init__(
        self,
        editor: Editor,
        judges: Panel,
        gate: QualityGate,
        detector: FaceDetector | None = None,
    ):
        """judges: as `gate_judges` finds them. detector: finds the faces that the identity judge
        looks at, where it does; CenterFace where left out."""
        self.editor, self.judges, self.gate = editor, judges, gate
        if judges.identity[0].needs_face:
            self._detector = detector or CenterFace()

    def mix(self, strengths: dict[str, float]) -> Mix:
        """`Editor.mix`."""
        return self.editor.mix(strengths)

    def edit(self, edits: Sequence[Edit]) -> list[Outcome]:
        """Every edit's outputs; each is the strongest of its trials that passes.

        `measured` holds what was found. A note says how far strengths were lowered, or that even
        the last trial fails.
        """
        outcomes = self.editor.edit(edits)
        subjects: dict[int, list[Subject]] = {}
        trials = [
            _Trial(i, k, mix)
            for i, outcome in enumerate(outcomes)
            if isinstance(outcome, list)
            for k, mix in enumerate(edits[i].mixes)
            if mix.lora_scales
        ]
        while trials:
            failing = []
            for trial in trials:
                photo, output = edits[trial.edit].pixels, _output(outcomes, trial)
                if trial.edit not in subjects:
                    subjects[trial.edit] = self._subjects(photo, output.regions)
                seen = self._measure(subjects[trial.edit], output, trial.mix)
                outcomes[trial.edit][trial.place] = self._marked(trial, output, seen)  # type: ignore[index]
                below = seen.get("identity", 1.0) < self.gate.identity
                if below and trial.backed_off < self.gate.retries:
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
        if "identity" not in seen:
            notes.append("no face was found; the identity was not measured")
        for name, limit in (("identity", self.gate.identity), ("effect", self.gate.effect)):
            if limit and seen.get(name, limit) < limit:
                notes.append(f"{name} {seen[name]:.2f} is below {limit:g}")
        return replace(output, notes=tuple(notes), measured=seen)

    def _subjects(self, photo: np.ndarray, regions: Sequence[Region]) -> list[Subject]:
        """What judges look at: each region that was edited, or the whole photo, and its largest
        face."""
        faces = self._detector.find(photo) if self.judges.identity[0].needs_face else []
        if not regions:
            return [Subject(photo, largest(faces))]
        return [
            Subject(photo, largest([face for face in faces if _is_in(face, region)]), region)
            for region in regions
        ]

    def _measure(self, subjects: Sequence[Subject], output: Edited, mix: Mix) -> dict[str, float]:
        """`identity`, the least of all regions, where the judge could tell; and `effect`, their
        mean, where the gate asks for it."""
        pictures = [to_uint8(output.pixels)]
        away = np.array([self.judges.identity[0].distances(s, pictures)[0] for s in subjects])
        away = away[np.isfinite(away)]
        seen = {"identity": 1 - float(away.max())} if away.size else {}
        if self.gate.effect:
            seen["effect"] = float(np.mean([self._effect(s, pictures[0], mix) for s in subjects]))
        return seen

    def _effect(self, subject: Subject, picture: np.ndarray, mix: Mix) -> float:
        clip, both, moves = self.judges.clip[0], [picture, subject.photo], []
        for reference in mix.lora_scales:
            prompts = self.editor.sliders[reference].card.prompts
            if prompts:
                scores = clip.scores(subject, both, [prompts.positive, prompts.negative])
                moved, still = scores[:, 0] - scores[:, 1]
                moves.append(float(moved - still) * float(np.sign(mix.strengths[reference])))
        return float(np.mean(moves)) if moves else 0.0


def _is_in(face: Face, region: Region) -> bool:
    """Whether the middle of a face's box is in the region."""
    left, top, right, bottom = face.box
    x, y = (left + right) / 2 - region.x, (top + bottom) / 2 - region.y
    turned = complex(x, y) * cmath.exp(-1j * region.angle)
    return max(abs(turned.real), abs(turned.imag)) <= region.side / 2


def _output(outcomes: list[Outcome], trial: _Trial) -> Edited:
    outcome = outcomes[trial.edit]
    assert isinstance(outcome, list)
    return outcome[trial.place]
