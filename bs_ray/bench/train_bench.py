"""Training and editing in this process, with the plain engine: what several benches share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from bs_ray.bench.drawn_world import prompts_of
from bs_ray.bench.world import Faces, Moves, World, moves, open_world, read, unedited
from bs_ray.config import EditorSettings, TrainJob
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.models import base_folder
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.card import Card
from bs_ray.sliders.slider import Slider
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble
from bs_ray.train.losses import Features
from bs_ray.train.step import TrainState
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher

GUIDED_ONLY = {"perceptual": 0, "soft_mask": 0}
"""The reference has one loss and no mask, so every contestant has that loss alone."""
MAX_STEPS = 300
_EDITED_AT_ONCE = 16


def bench_job(attribute: str, seed: int, **settings: Any) -> TrainJob:
    """A job of a bench. settings: those of the contestant; the drawn world's prompts where they
    have none."""
    shared = {
        "kind": "train",
        "name": attribute,
        "photos": "the world's",
        "steps": MAX_STEPS,
        "workers": 1,
        "rank": 4,
        "alpha": 4.0,
        "lr": 5e-4,
        "seed": seed,
    }
    losses = {"eta": 4.0} | settings.pop("losses", {})
    prompts = settings.pop("prompts", None) or prompts_of(attribute)
    return TrainJob.model_validate(shared | settings | {"losses": losses, "prompts": prompts})


class TrainBench:
    """A world, and a counter of what its base predicts."""

    def __init__(self, world: World):
        self.world, self.model = world, world.model
        self.counter = ForwardCounter(self.model.denoiser)

    @classmethod
    def load(cls, base: str = "tiny", faces: str | None = None) -> TrainBench:
        """See open_world."""
        return cls(open_world(base, faces))

    def job(self, attribute: str, seed: int, **settings: Any) -> TrainJob:
        """See bench_job; for this world's base, in its words."""
        own = {"base": self.world.base, "prompts": self.world.prompts(attribute)}
        return bench_job(attribute, seed, **own, **settings)

    @cached_property
    def features(self) -> Features:
        """The perceptual network of training on this base. Raises BaseNotFound."""
        return load_features(base_folder(self.world.base), "cpu")

    def train_state(self, job: TrainJob, samples: Any = ()) -> TrainState:
        """What a run trains with, in this process, without Ray or DeepSpeed."""
        features = self.features if job.losses.needs_features else None
        return assemble(job, self.model, self.world.photos, features, PlainEngine, samples=samples)

    def samples(self, job: TrainJob) -> list[dict[str, Any]]:
        """The rows of the job's teacher cache; none for a live teacher."""
        if job.teacher.mode != "cached":
            return []
        maker = SampleMaker(job, self.model, self.world.photos, Teacher(self.model, job.concepts))
        return list(maker.make(range(job.teacher.samples)))

    def slider(self, state: TrainState, name: str) -> Slider:
        """A slider of a run, with its weights of this moment."""
        job, model = state.job, self.model
        card = Card(
            name=name,
            base=self.world.base,
            base_id=model.base_id,
            family=model.family,
            part=model.part,
            prompts=job.concepts[name],
            rank=job.rank,
        )
        return state.bank.to_slider(card)

    @torch.no_grad()
    def edited(
        self, slider: Slider, faces: Faces, strengths: Sequence[float], seed: int = 0
    ) -> np.ndarray:
        """The faces at each strength, not calibrated: uint8 [F, K, H, W, 3]."""
        editor = Editor(self.model, [slider], EditorSettings(calibrated=False))
        mixes = [editor.mix({slider.reference: strength}) for strength in strengths]
        edits = [Edit(f"f{i}", s.photo, mixes, seed) for i, s in enumerate(faces.subjects)]
        at_once = range(0, len(edits), _EDITED_AT_ONCE)
        parts = [editor.edit(edits[i : i + _EDITED_AT_ONCE]) for i in at_once]
        editor.close()
        done = [outputs_of(one) for part in parts for one in part]
        return np.stack([[to_uint8(output.pixels) for output in versions] for versions in done])

    def effect(self, slider: Slider, attribute: str, faces: Faces, strength: float = 1.0) -> Moves:
        """What the slider does to the faces at one strength."""
        before = read(self.world, faces, unedited(faces)[:, None])[:, 0]
        after = read(self.world, faces, self.edited(slider, faces, [strength]))[:, 0]
        return moves(self.world, attribute, 1 if strength > 0 else -1, before, after)


class ForwardCounter:
    """Counts rows that go through the denoiser; a row with a backward pass counts three times."""

    def __init__(self, denoiser: nn.Module):
        self.rows = 0
        denoiser.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        sample = output[0] if isinstance(output, tuple) else output.sample
        self.rows += len(sample) * (3 if torch.is_grad_enabled() else 1)


@contextmanager
def fresh_hooks(model: DiffusionModel) -> Iterator[None]:
    """Removes, after the `with` block, the hooks that were added to the denoiser in it."""
    before = {m: dict(m._forward_hooks) for m in model.denoiser.modules()}
    try:
        yield
    finally:
        for module, hooks in before.items():
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


def mean_sd(values: Sequence[float]) -> Mapping[str, float]:
    """Of one figure over the seeds; sd is 0 for a single one."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "sd": spread}
