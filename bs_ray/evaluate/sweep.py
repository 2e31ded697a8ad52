"""Sweep sliders over faces and read the results: the work that one evaluation actor does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bs_ray.config import EvalJob
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.editing.generate import generate
from bs_ray.evaluate.worlds import open_world
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry

BASE = "base"
TEXT_STEPS = 15
STRIPS = 8
"""Faces of each split whose pictures are kept for the report."""


@dataclass(frozen=True)
class Task:
    """One forward-sized piece of an evaluation: some faces of one split under one slider.

    In split BASE it is some pictures of the base without sliders.
    """

    split: str
    slider: str
    first: int
    count: int


def tasks(job: EvalJob) -> list[Task]:
    """The whole grid, in order."""
    grid = [(split, slider, n) for split, n in job.splits.items() for slider in job.sliders]
    return [
        Task(split, slider, first, min(job.batch_size, count - first))
        for split, slider, count in [*grid, (BASE, "", job.base_images)]
        for first in range(0, count, job.batch_size)
    ]


class Sweeper:
    """Holds the base, the sliders and the world; measures one Task at a time."""

    def __init__(self, job: EvalJob):
        self.job, self.world = job, open_world(job.base)
        sliders = [Registry(job.registry).resolve(reference) for reference in job.sliders]
        self.references = dict(zip(job.sliders, (s.reference for s in sliders), strict=True))
        self.editor = Editor(load_base(job.base), sliders, job.editor)

    def measure(self, task: Task) -> list[dict]:
        """One row for each face and strength: readings, scores, and the first faces' pictures.

        Of the base, one row for each picture.
        """
        if task.split == BASE:
            return self._measure_base(task)
        pictures, exact = self._pictures(task)
        return self._judge(task, images_of(pictures), pictures, exact)

    def _measure_base(self, task: Task) -> list[dict]:
        rows = self.world.base_rows(self.editor.model, task.first, task.count, self.job.base_images)
        return [{"setting": BASE, "face": task.first + i} | row for i, row in enumerate(rows)]

    def _pictures(self, task: Task) -> tuple[np.ndarray, list[bool]]:
        """uint8 [F, K, H, W, 3] of the sweep, and whether strength 0 returned each input."""
        reference, strengths = self.references[task.slider], self.job.strengths
        if task.split == "text":
            return self._generate(task), [True] * task.count
        pixels = self.world.photos(task.split, task.first, task.count, self.job.seed)
        mixes = [self.editor.mix({reference: strength}) for strength in strengths]
        edits = [
            Edit(f"{task.split}-{task.first + i}", photo, mixes, self.job.seed)
            for i, photo in enumerate(pixels)
        ]
        outcomes = [outputs_of(outcome) for outcome in self.editor.edit(edits)]
        done = np.stack([[to_uint8(out.pixels) for out in row] for row in outcomes])
        zero = strengths.index(0)
        return done, [bool((done[i, zero] == pixels[i]).all()) for i in range(task.count)]

    def _generate(self, task: Task) -> np.ndarray:
        """Each prompt's picture at every strength (the paper's first setting)."""
        attribute, reference = self.job.sliders[task.slider], self.references[task.slider]
        prompts = self.world.prompts(attribute, task.first, task.count, self.job.seed)
        images = generate(
            self.editor,
            prompts,
            [[{reference: s} for s in self.job.strengths]] * len(prompts),
            keys=[f"text-{task.first + i}" for i in range(len(prompts))],
            seed=self.job.seed,
            steps=TEXT_STEPS,
            guidance_scale=self.job.guidance_scale,
        )
        return pixels_of(images)

    @torch.no_grad()
    def _judge(
        self, task: Task, seen: Tensor, pictures: np.ndarray, exact: list[bool]
    ) -> list[dict]:
        strengths, judges = self.job.strengths, self.world.judges
        zero = strengths.index(0)
        flat, still = seen.flatten(0, 1), seen[:, [zero] * len(strengths)].flatten(0, 1)
        readings = judges.reader.read(flat)
        card = self.editor.sliders[self.references[task.slider]].card
        scores = {
            "identity": judges.identity.similarity(flat, still),
            "perceptual": judges.perceptual.distance(flat, still),
            "clip": judges.clip.score(flat, card.prompts.positive if card.prompts else card.target),
        }
        rows = []
        for index in range(len(flat)):
            face, k = divmod(index, len(strengths))
            number = task.first + face
            rows.append(
                {
                    "setting": task.split,  # the name of the column is older than that of splits
                    "slider": task.slider,
                    "face": number,
                    "strength": float(strengths[k]),
                    "zero_exact": exact[face],
                    "readings": readings[index].tolist(),
                    "picture": pictures[face, k].tobytes() if number < STRIPS else None,
                    "picture_px": pictures.shape[2],
                    **{name: float(score[index]) for name, score in scores.items()},
                }
            )
        return rows
