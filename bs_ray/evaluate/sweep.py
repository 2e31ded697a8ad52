"""Sweep sliders over faces and read the results: the work that one evaluation actor does."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bs_ray.config import EvalJob
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.editing.generate import generate
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.judges.load import WorldJudges
from bs_ray.models import base_folder, load_base
from bs_ray.sliders.registry import Registry
from bs_ray.tiny import captions, faces

HELD_OUT_SEED = 1_000_000
"""Scenes from here on are never drawn by the recipe of the tiny base."""
TEXT_STEPS = 15
STRIPS = 8
"""Faces per setting whose pictures are kept for the report."""


@dataclass(frozen=True)
class Task:
    """One forward-sized piece of an evaluation: some faces of one setting under one slider."""

    setting: str
    slider: str
    first: int
    count: int


def tasks(job: EvalJob) -> list[Task]:
    """The whole grid, in order."""
    return [
        Task(setting, slider, first, min(job.batch_size, count - first))
        for setting, count in job.settings.items()
        for slider in job.sliders
        for first in range(0, count, job.batch_size)
    ]


class Sweeper:
    """Holds the base, the sliders and the judges; measures one Task at a time."""

    def __init__(self, job: EvalJob):
        self.job = job
        model = load_base(job.base)
        sliders = [Registry(job.registry).resolve(reference) for reference in job.sliders]
        self.names = dict(zip(job.sliders, (s.card.name for s in sliders), strict=True))
        self.editor = Editor(model, sliders, job.editor)
        self.judges = WorldJudges.load(base_folder(job.base))

    def measure(self, task: Task) -> list[dict]:
        """One row per face and strength: readings, scores, and the first faces' pictures."""
        scene = faces.sample_scenes(task.count, HELD_OUT_SEED + self.job.seed + task.first)
        pictures, exact = self._pictures(task, scene)
        return self._judge(task, images_of(pictures), pictures, exact)

    def _pictures(self, task: Task, scene: faces.Scene) -> tuple[np.ndarray, list[bool]]:
        """uint8 [F, K, H, W, 3] of the sweep, and whether strength 0 gave each input back."""
        name, strengths = self.names[task.slider], self.job.strengths
        if task.setting == "text":
            return self._generate(task, scene), [True] * task.count
        seed = HELD_OUT_SEED + self.job.seed + task.first
        images = faces.render_wild(scene, seed) if task.setting == "wild" else faces.render(scene)
        pixels = pixels_of(images)
        mixes = [{name: strength} for strength in strengths]
        edits = [
            Edit(f"{task.setting}-{task.first + i}", photo, mixes, self.job.seed)
            for i, photo in enumerate(pixels)
        ]
        outcomes = [outputs_of(outcome) for outcome in self.editor.edit(edits)]
        done = np.stack([[to_uint8(out.pixels) for out in row] for row in outcomes])
        zero = strengths.index(0)
        return done, [bool((done[i, zero] == pixels[i]).all()) for i in range(task.count)]

    def _generate(self, task: Task, scene: faces.Scene) -> np.ndarray:
        """Prompts -> the same picture at every strength (the paper's first setting)."""
        attribute, strengths = self.job.sliders[task.slider], self.job.strengths
        rng = random.Random(task.first)
        own = {phrase for ends in captions.PHRASES[attribute] for phrase in ends}
        prompts = []
        for row in range(task.count):
            true = [p for p in captions.phrases(scene, row, rng) if p not in own]
            prompts.append(", ".join(["a photo of a person", *rng.sample(true, 4)]))
        images = generate(
            self.editor,
            prompts,
            [[{self.names[task.slider]: s} for s in strengths]] * len(prompts),
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
        strengths = self.job.strengths
        zero = strengths.index(0)
        flat, still = seen.flatten(0, 1), seen[:, [zero] * len(strengths)].flatten(0, 1)
        readings = self.judges.reader.read(flat)
        card = self.editor.sliders[self.names[task.slider]].card
        scores = {
            "identity": self.judges.identity.similarity(flat, still),
            "perceptual": self.judges.perceptual.distance(flat, still),
            "clip": self.judges.clip.score(
                flat, card.prompts.positive if card.prompts else card.target
            ),
        }
        rows = []
        for index in range(len(flat)):
            face, k = divmod(index, len(strengths))
            number = task.first + face
            rows.append(
                {
                    "setting": task.setting,
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
