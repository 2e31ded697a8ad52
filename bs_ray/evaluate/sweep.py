"""Sweep sliders over photos or prompts and judge the results: the work that one actor does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from bs_ray.config import EditorSettings, EvalJob
from bs_ray.config.evaluate import ComparedSettings
from bs_ray.editing.editor import Edit, Edited, Editor, outputs_of, to_uint8
from bs_ray.editing.generate import begin_generating, pictures
from bs_ray.editing.methods import METHODS
from bs_ray.editing.run import run_alone
from bs_ray.evaluate.arms import Arm, arms_of
from bs_ray.evaluate.bases import BaseMeasure, base_measure
from bs_ray.evaluate.judging import judging_of
from bs_ray.evaluate.splits import Item, Split
from bs_ray.evaluate.splits.photos import Photos
from bs_ray.evaluate.trust import pair_rows
from bs_ray.evaluate.variants import methods_of
from bs_ray.images.faces import CenterFace, Face, FaceDetector
from bs_ray.images.pixels import pixels_of
from bs_ray.images.regions import Region, crop
from bs_ray.judges.judge import Subject, subject_of
from bs_ray.models import absolute_base, load_base
from bs_ray.models.base import DiffusionModel

TEXT_STEPS = 15
STRIPS = 8
"""Items of each split whose pictures are kept for the report."""
_THUMBNAIL_PX = 128
_TIMED, _TIMED_TURNS = 8, 3

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepTask:
    """One forward-sized piece of an evaluation: some items of one split under one arm."""

    arm: Arm
    split: str
    first: int
    count: int
    seed: int


@dataclass(frozen=True)
class BaseTask:
    """Some pictures of the base without sliders."""

    first: int
    count: int


@dataclass(frozen=True)
class CostTask:
    """What one edit costs, by every arm in turn."""

    split: str
    count: int


@dataclass(frozen=True)
class PairTask:
    """The test of the identity judges on a split's own pairs."""

    split: str
    count: int


Task = SweepTask | BaseTask | CostTask | PairTask


def sweep_tasks(job: EvalJob, arms: Sequence[Arm], splits: Mapping[str, Split]) -> list[SweepTask]:
    """The whole grid, in order.

    The seeds take turns over the faces: a figure over all faces counts each once, and its spread
    over seeds contains the spread over faces.
    """
    return [
        SweepTask(
            arm,
            name,
            first,
            min(job.batch_size, len(split) - first),
            job.seed + turn % job.seeds,
        )
        for name, split in splits.items()
        for arm in arms
        for turn, first in enumerate(range(0, len(split), job.batch_size))
    ]


def base_tasks(job: EvalJob) -> list[BaseTask]:
    """Pictures of the base itself, in order."""
    return [
        BaseTask(first, min(job.batch_size, job.base_images - first))
        for first in range(0, job.base_images, job.batch_size)
    ]


def cost_tasks(splits: Mapping[str, Split]) -> list[CostTask]:
    """Edits of the first split that has photos; nothing where all are generated."""
    named = [(n, split) for n, split in splits.items() if not split.generates]
    return [CostTask(name, min(_TIMED, len(split))) for name, split in named[:1]]


def pair_tasks(splits: Mapping[str, Split]) -> list[PairTask]:
    """A test for every split whose photos name who is seen."""
    return [
        PairTask(name, len(split.pairs))
        for name, split in splits.items()
        if isinstance(split, Photos) and split.pairs
    ]


class Remembering:
    """A detector that looks at the same photo once: what is edited is what is judged."""

    def __init__(self, detector: FaceDetector):
        self._detector = detector
        self._found: list[tuple[np.ndarray, list[Face]]] = []

    def find(self, pixels: np.ndarray) -> list[Face]:
        """See FaceDetector."""
        for seen, faces in self._found:
            if seen is pixels:
                return faces
        faces = self._detector.find(pixels)
        self._found.append((pixels, faces))
        return faces

    def forget(self) -> None:
        """Let go of the photos."""
        self._found = []


class Sweeper:
    """Holds bases, sliders and judges; measures one Task at a time."""

    def __init__(self, job: EvalJob, splits: Mapping[str, Split], device: str = "cpu"):
        self.job, self._splits, self._device = job, splits, device
        self._arms = arms_of(job)
        self._models: dict[str, DiffusionModel] = {}
        self._at_work: tuple[Arm, Editor] | None = None
        self._detector: Remembering | None = None
        self._judging = judging_of(job, self._arms, splits)
        self._base: BaseMeasure | None = None

    def measure(self, task: Task) -> list[Row]:
        """One row for each item and strength; of the base, one for each picture."""
        if isinstance(task, BaseTask):
            return self._measure_base(task)
        if isinstance(task, CostTask):
            return self._measure_costs(task)
        split = self._splits[task.split]
        if isinstance(task, PairTask):
            assert isinstance(split, Photos)
            identity = self._judging[task.split].panel.identity
            detector = self._faces() if any(judge.needs_face for judge in identity) else None
            return pair_rows(identity, split.pair_items(), detector)
        items = split.items(task.first, task.count)
        sound = [item for item in items if not item.problem]
        editor = self._editor(task.arm)
        made = (self._generate if split.generates else self._edit)(editor, sound, task.seed)
        rows = [self._left_out(task, item, item.problem) for item in items if item.problem]
        for item, sweep in zip(sound, made, strict=True):
            rows += self._judge(task, item, sweep)
        if self._detector:
            self._detector.forget()
        return sorted(rows, key=lambda row: row["item"])

    # --- the pictures ---------------------------------------------------------------------------

    def _model(self, base: str) -> DiffusionModel:
        if base not in self._models:
            if len(self._models) > 1:  # two bases at a time are enough for any comparison in turn
                self._models.pop(next(iter(self._models)))
            self._models[base] = load_base(base, device=self._device)
        return self._models[base]

    def _editor(self, arm: Arm) -> Editor:
        """The arm's editor, alone on its base."""
        if self._at_work and self._at_work[0] == arm:
            return self._at_work[1]
        if self._at_work:
            self._at_work[1].close()
        methods = methods_of(arm.editor) if isinstance(arm.editor, ComparedSettings) else METHODS
        detector = self._faces() if arm.editor.region == "face" else None
        editor = Editor(
            self._model(arm.base), [arm.resolved()], arm.editor, methods=methods, detector=detector
        )
        self._at_work = arm, editor
        return editor

    def _faces(self) -> Remembering:
        if self._detector is None:
            self._detector = Remembering(CenterFace())
        return self._detector

    def _mixes(self, editor: Editor) -> list:
        [reference] = editor.sliders
        return [editor.mix({reference: strength}) for strength in self.job.strengths]

    def _edit(self, editor: Editor, items: Sequence[Item], seed: int) -> list[_Sweep]:
        mixes = self._mixes(editor)
        edits = [Edit(item.key, _pixels(item), mixes, seed) for item in items]
        outcomes = [outputs_of(outcome) for outcome in editor.edit(edits)]
        zero = self.job.strengths.index(0)
        found = []
        for item, outcome in zip(items, outcomes, strict=True):
            done = [to_uint8(edited.pixels) for edited in outcome]
            exact = bool((done[zero] == item.pixels).all())
            problem = _nothing(editor.settings, outcome)
            found.append(_Sweep(_pixels(item), done, exact, _region(outcome), problem))
        return found

    def _generate(self, editor: Editor, items: Sequence[Item], seed: int) -> list[_Sweep]:
        """Each prompt's picture at every strength (the paper's first setting); the picture at
        strength 0 stands for the photo."""
        mixes, count = self._mixes(editor), len(self.job.strengths)
        if not items:
            return []
        run = begin_generating(
            editor,
            [item.prompt for item in items for _ in range(count)],
            mixes * len(items),
            keys=[item.key for item in items for _ in range(count)],
            seeds=[item.seed for item in items for _ in range(count)],
            steps=TEXT_STEPS,
            guidance_scale=self.job.guidance_scale,
        )
        drawn = pixels_of(pictures(editor, run_alone(run, editor.predict)))
        zero = self.job.strengths.index(0)
        sweeps = [list(drawn[i : i + count]) for i in range(0, len(drawn), count)]
        return [_Sweep(sweep[zero], sweep, True, None, "") for sweep in sweeps]

    # --- what is measured on them ---------------------------------------------------------------

    @torch.no_grad()
    def _judge(self, task: SweepTask, item: Item, sweep: _Sweep) -> list[Row]:
        if sweep.problem:
            return [self._left_out(task, item, sweep.problem)]
        judging = self._judging[task.split]
        detector = self._faces() if judging.panel.needs_faces else None
        subject = subject_of(sweep.photo, detector)
        subject = Subject(subject.photo, subject.face, sweep.region)
        if judging.panel.needs_faces and subject.face is None:
            return [self._left_out(task, item, "no face: the judges of faces see nothing")]
        columns = judging.read(subject, sweep.pictures)
        photo = [] if sweep.exact else [self._read_photo(task, item, subject)]
        changes = [
            np.abs(picture.astype(np.float32) - sweep.photo).mean() / 255
            for picture in sweep.pictures
        ]
        kept = item.number < STRIPS and task.seed == self.job.seed
        return photo + [
            {
                **self._named(task, item),
                "strength": float(strength),
                "zero_exact": sweep.exact,
                "pixels": float(changes[k]),
                "picture": _thumbnail(sweep.pictures[k], sweep.region) if kept else None,
                **{name: float(values[k]) for name, values in columns.items()},
            }
            for k, strength in enumerate(self.job.strengths)
        ]

    def _read_photo(self, task: SweepTask, item: Item, subject: Subject) -> Row:
        """The row of a photo itself, where strength 0 is another picture."""
        read = self._judging[task.split].read(subject, [subject.photo])
        values = {name: float(value) for name, [value] in read.items()}
        return {**self._named(task, item), "strength": np.nan, **values}

    def _named(self, task: SweepTask, item: Item) -> Row:
        return {
            "split": task.split,
            "group": task.arm.group,
            "arm": task.arm.name,
            "seed": task.seed,
            "item": item.number,
            "key": item.key,
            "identity": item.identity,
            "problem": "",
        }

    def _left_out(self, task: SweepTask, item: Item, problem: str) -> Row:
        """The row of an item that cannot be measured."""
        return {**self._named(task, item), "strength": np.nan, "problem": problem}

    def _measure_base(self, task: BaseTask) -> list[Row]:
        if self._base is None:
            self._base = base_measure(self.job, self._splits, self._judging)
        return self._base.rows(self._model(absolute_base(self.job.base)), task.first, task.count)

    def _measure_costs(self, task: CostTask) -> list[Row]:
        """One edit of a batch, alone: its evaluations and its seconds, the median of some turns."""
        items = [i for i in self._splits[task.split].items(0, task.count) if not i.problem]
        taken: dict[Arm, list[float]] = {arm: [] for arm in self._arms}
        evaluations: dict[Arm, float] = {}
        for _ in range(_TIMED_TURNS):
            for arm, seconds in taken.items():
                editor = self._editor(arm)
                [reference] = editor.sliders
                mixes = [editor.mix({reference: 1.0})]
                edits = [Edit(item.key, _pixels(item), mixes) for item in items]
                before, start_s = editor.evaluations, time.perf_counter()
                editor.edit(edits)
                seconds.append((time.perf_counter() - start_s) / len(edits))
                evaluations[arm] = (editor.evaluations - before) / len(edits)
        return [
            {
                "group": arm.group,
                "arm": arm.name,
                "evaluations": evaluations[arm],
                "seconds": median(seconds),
                "seconds_spread": max(seconds) - min(seconds),
            }
            for arm, seconds in taken.items()
        ]


@dataclass(frozen=True)
class _Sweep:
    """One item's pictures over the strengths."""

    photo: np.ndarray
    pictures: list[np.ndarray]
    exact: bool
    """Whether strength 0 returned the photo, bit for bit."""
    region: Region | None
    """Where it was edited; the largest of several."""
    problem: str


def _pixels(item: Item) -> np.ndarray:
    assert item.pixels is not None
    return item.pixels


def _region(outcome: Sequence[Edited]) -> Region | None:
    return max(outcome[0].regions, key=lambda region: region.side, default=None)


def _nothing(settings: EditorSettings, outcome: Sequence[Edited]) -> str:
    """Why nothing was edited, where nothing was."""
    if settings.region == "face" and settings.no_face == "leave" and not outcome[0].regions:
        return "no face: nothing was edited"
    return ""


def _thumbnail(pixels: np.ndarray, region: Region | None) -> bytes:
    """A PNG of what was edited, at most _THUMBNAIL_PX wide and high."""
    if region is not None:
        pixels = crop(pixels, region, _THUMBNAIL_PX)
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BICUBIC)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
