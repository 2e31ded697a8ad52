"""Samples: noisy latents with the frozen base's predictions, made once and stored
(docs/method.md, "Training").

A sample depends on (base, prompts, photos, seed, number) alone, so any number of workers makes the
same cache. Even samples are "near" (t <= image_timestep_max) and odd ones are not, like the rows of
a batch. Everything is stored in fp16, and the predictions are made at the stored x_t.

Legend: N samples, M sliders; latents [C, h, w].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bs_ray.config import CachedTeacher, TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import euler_path, guided, keyed_generator, keyed_noise
from bs_ray.sliders.bank import SliderBank
from bs_ray.train.batches import RowDraws, TrainBatch, draw, text_batch
from bs_ray.train.targets.teacher import Teacher, TeacherOutput

PATH_STEPS = 48
PATH_SAMPLES = 16
"""Samples taken from one denoising run of PATH_STEPS steps, half of them near."""
_ROWS = 8  # samples in one forward pass

Row = dict[str, Any]
"""sample, photo, t, turn: int; x_t [C, h, w], neutral and direction [M, C, h, w]: fp16 bytes."""


@dataclass
class SampleMaker:
    """Makes samples by number."""

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    teacher: Teacher
    _points: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)

    @property
    def settings(self) -> CachedTeacher:
        assert isinstance(self.job.teacher, CachedTeacher)
        return self.job.teacher

    @property
    def paths(self) -> int:
        """How many denoising runs samples are taken from; these samples come first."""
        return round(self.settings.samples * self.settings.trajectory_share) // PATH_SAMPLES

    def make(self, samples: Sequence[int]) -> Iterator[Row]:
        """The samples with these numbers, in this order."""
        from_paths = PATH_SAMPLES * self.paths
        for first in range(0, len(samples), _ROWS):
            part = samples[first : first + _ROWS]
            draws = [self._from_path(n) if n < from_paths else self._noised(n) for n in part]
            yield from self._rows(part, draws)

    def _noised(self, number: int) -> tuple[int, int, Tensor]:
        """(photo, t, x_t) of a noised photo."""
        kind = self.model.prediction
        one = draw(
            self.job,
            range(number, number + 1),
            0,
            len(self.photos),
            kind.num_train_timesteps,
            self.photos.latent_shape,
        )
        x0 = self.photos.latents(one.photo).cpu()
        return one.photo[0], int(one.t[0]), kind.add_noise(x0, one.noise, one.t)[0]

    def _from_path(self, number: int) -> tuple[int, int, Tensor]:
        """(photo, t, x_t) from one of the base's own denoising runs; the photo is any real one."""
        path, place = divmod(number, PATH_SAMPLES)
        points = self._path_points(path)
        photo = torch.randint(
            len(self.photos), (), generator=keyed_generator(self.job.seed, -1, number)
        )
        return int(photo), *points[place]

    def _rows(self, numbers: Sequence[int], draws: list[tuple[int, int, Tensor]]) -> list[Row]:
        device = self.model.device
        x_t = torch.stack([x for _, _, x in draws]).half()
        t = torch.tensor([t for _, t, _ in draws])
        turn = torch.tensor(numbers)
        output = self.teacher(x_t.float().to(device), t.to(device), turn)
        neutral, direction = (p.half().cpu().numpy() for p in (output.neutral, output.direction))
        return [
            {
                "sample": number,
                "photo": draws[i][0],
                "t": draws[i][1],
                "turn": number,
                "x_t": x_t[i].numpy().tobytes(),
                "neutral": neutral[:, i].tobytes(),
                "direction": direction[:, i].tobytes(),
            }
            for i, number in enumerate(numbers)
        ]

    def _path_points(self, path: int) -> list[tuple[int, Tensor]]:
        """PATH_SAMPLES points (t, x_t) of one run from pure noise, near and not near in turn."""
        if path not in self._points:
            self._points = {path: self._run(path)}  # samples come in order, so one run is kept
        return self._points[path]

    @torch.no_grad()
    def _run(self, path: int) -> list[tuple[int, Tensor]]:
        model, split = self.model, self.job.losses.image_timestep_max
        cond = self.teacher.targets(torch.tensor([0]), torch.tensor([path]))
        scale = self.settings.trajectory_guidance
        forward = guided(model.predict, cond, self.teacher.conditions([""]), scale, model.guide)
        x = keyed_noise(self.photos.latent_shape, self.job.seed, f"path-{path}", 0)[None]
        times = model.prediction.timesteps(PATH_STEPS)
        walk = euler_path(model.prediction, forward, x.to(model.device), times)
        points = [(t, x_t[0].cpu()) for x_t, t in walk if t is not None]
        half = PATH_SAMPLES // 2
        near = _spread([point for point in points if point[0] <= split], half)
        far = _spread([point for point in points if point[0] > split], half)
        return [point for pair in zip(near, far, strict=True) for point in pair]


def _spread(points: list[tuple[int, Tensor]], count: int) -> list[tuple[int, Tensor]]:
    """`count` of the points, evenly spaced."""
    return [points[i * len(points) // count] for i in range(count)]


# --- training from them --------------------------------------------------------------------------
def sample_number(job: TrainJob, samples: int, step: int, row: int) -> int:
    """The sample that a global row of a step takes; all are taken once before one is taken again.

    Even rows take even (near) samples and odd rows odd ones, in a new order every epoch.
    """
    parity, pool = row % 2, (samples + 1 - row % 2) // 2
    a_step = (job.batch_size + 1 - parity) // 2
    epoch, place = divmod(step * a_step + row // 2, pool)
    return 2 * int(_order(job.seed, parity, epoch, pool)[place]) + parity


@lru_cache(maxsize=8)
def _order(seed: int, parity: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=keyed_generator(seed, -2 - epoch, parity))


@dataclass
class CachedBatches:
    """Batches from stored samples, and a share of their rows from runs with the slider on.

    These rows, `on_policy_fraction` of all, are made anew at every checkpoint with the weights that
    it stores, so a run that resumes there makes the same rows.
    """

    job: TrainJob
    model: DiffusionModel
    photos: PhotoPool
    teacher: Teacher
    bank: SliderBank
    samples: dict[int, Row] = field(default_factory=dict)
    _own: dict[int, Row] = field(default_factory=dict)

    @classmethod
    def load(cls, rows: Iterable[Mapping[str, Any]], **parts: Any) -> CachedBatches:
        """Keep the rows of a cache, in whatever order they arrive."""
        return cls(samples={int(row["sample"]): dict(row) for row in rows}, **parts)

    def at(self, step: int, rows: range) -> TrainBatch:
        job, device = self.job, self.model.device
        settings = job.teacher
        assert isinstance(settings, CachedTeacher)
        taken = [
            self._own.get(row) or self.samples[sample_number(job, settings.samples, step, row)]
            for row in rows
        ]
        shape = self.photos.latent_shape

        def stack(name: str, *lead: int) -> Tensor:
            return torch.stack([_half(row[name], (*lead, *shape)) for row in taken]).to(device)

        count = len(job.slider_names)
        x_t, t = stack("x_t"), torch.tensor([row["t"] for row in taken], device=device)
        predicted = TeacherOutput(
            stack("neutral", count).transpose(0, 1), stack("direction", count).transpose(0, 1)
        )
        draws = draw(job, rows, step, len(self.photos), 1000, (1, 1, 1))
        draws = RowDraws(
            [row["photo"] for row in taken],
            draws.t,
            draws.strength,
            draws.noise,
            torch.tensor([row["turn"] for row in taken]),
        )
        return text_batch(job, self.teacher, rows, draws, x_t, t, predicted)

    def refresh(self, step: int, rows: range) -> None:
        assert isinstance(self.job.teacher, CachedTeacher)
        own = round(self.job.teacher.on_policy_fraction * self.job.batch_size)
        first = self.job.batch_size - own
        self._own = {row: self._on_policy(step, row) for row in rows if row >= first}

    @torch.no_grad()
    def _on_policy(self, step: int, row: int) -> Row:
        """A row from a denoising run with a slider on, as Concept Sliders has it, at a random
        strength."""
        model, job = self.model, self.job
        settings, split = job.teacher, job.losses.image_timestep_max
        assert isinstance(settings, CachedTeacher)
        shape, rng = self.photos.latent_shape, keyed_generator(job.seed, -3 - step, -1 - row)
        one = draw(job, range(row, row + 1), -3 - step, len(self.photos), 1000, shape)
        slider = torch.tensor([row % len(job.slider_names)])
        lora_scales = torch.zeros(2, len(job.slider_names), device=model.device)
        lora_scales[:, slider] = float(one.strength[slider, 0])

        def forward(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return self.bank.predict(model, x, t, condition, lora_scales)

        cond = self.teacher.targets(slider, one.turn)
        scale = settings.trajectory_guidance
        ahead = guided(forward, cond, self.teacher.conditions([""]), scale, model.guide)
        times = model.prediction.timesteps(PATH_STEPS)
        points = [t for t in times if (t <= split) == (row % 2 == 0)]
        stop = points[int(torch.randint(len(points), (), generator=rng))]
        walk = euler_path(model.prediction, ahead, one.noise.to(model.device), times)
        x_t = next(x for x, t in walk if t == stop).half()
        t = torch.tensor([stop])
        predicted = self.teacher(x_t.float(), t.to(model.device), one.turn)
        return {
            "photo": one.photo[0],
            "t": stop,
            "turn": int(one.turn[0]),
            "x_t": x_t[0].cpu().numpy().tobytes(),
            "neutral": predicted.neutral[:, 0].half().cpu().numpy().tobytes(),
            "direction": predicted.direction[:, 0].half().cpu().numpy().tobytes(),
        }


def _half(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """fp16 bytes -> float32."""
    return torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))
