"""Training against the reference procedure, on the tiny base, in one process and one run.

Every contestant trains the same slider (same prompts, rank, learning rate, eta) until its attribute
moves by the same amount at strength 1, as the base's reader judges edits of held-out faces. Time
counts for training, and for `cached` also for building the cache, but not for judging.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bs_ray.config import EditorSettings, TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.images.pixels import pixels_of
from bs_ray.judges.load import WorldJudges
from bs_ray.models import base_folder, load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.card import Card
from bs_ray.sliders.slider import Slider
from bs_ray.tiny import faces
from bs_ray.tiny.captions import PHRASES
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, one_step
from bs_ray.train.step import TrainState
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher

HELD_OUT_SEED = 3_000_000
_FACES, _PHOTOS = 48, 96
_TARGET = "a photo of a person"
GUIDED_ONLY = {"perceptual": 0, "soft_mask": 0}
"""The reference has one loss and no mask, so every contestant has that loss alone."""

MODES: dict[str, dict[str, Any]] = {
    "concept_sliders": {"algorithm": "concept_sliders", "batch_size": 1, "losses": GUIDED_ONLY},
    "live": {"batch_size": 4, "losses": GUIDED_ONLY},
    "cached": {
        "batch_size": 2,
        "losses": GUIDED_ONLY,
        "teacher": {"mode": "cached", "samples": 64},
    },
}
MAX_STEPS = 300


def prompts_of(attribute: str) -> dict[str, str]:
    """The prompts of a slider of the tiny world, in the words its base was trained on."""
    low, high = (ends[0] for ends in PHRASES[attribute])
    return {
        "target": _TARGET,
        "positive": f"{_TARGET}, {high}",
        "negative": f"{_TARGET}, {low}",
    }


def bench_job(attribute: str, seed: int, **settings: Any) -> TrainJob:
    """A job of the race. settings: those of the contestant."""
    shared = {
        "kind": "train",
        "name": attribute,
        "prompts": prompts_of(attribute),
        "photos": "drawn",
        "steps": MAX_STEPS,
        "workers": 1,
        "rank": 4,
        "alpha": 4.0,
        "lr": 5e-4,
        "seed": seed,
    }
    losses = {"eta": 4.0} | settings.pop("losses", {})
    return TrainJob.model_validate(shared | settings | {"losses": losses})


@dataclass
class TrainBench:
    """The tiny base, its judges, photos to train on, and held-out faces to edit."""

    model: DiffusionModel
    judges: WorldJudges
    photos: PhotoPool
    held_out: Tensor
    """float32 [F, 3, 64, 64] in [-1, 1]."""
    counter: ForwardCounter

    @classmethod
    def load(cls, base: str = "tiny") -> TrainBench:
        model = load_base(base)
        images = faces.render(faces.sample_scenes(_PHOTOS, 5))
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        photos = PhotoPool([f"{i:04d}" for i in range(_PHOTOS)], pixels, model)
        held_out = faces.render(faces.sample_scenes(_FACES, HELD_OUT_SEED))
        judges = WorldJudges.load(base_folder(base))
        return cls(model, judges, photos, held_out, ForwardCounter(model.denoiser))

    def train_state(self, job: TrainJob, samples: Any = ()) -> TrainState:
        """What a run trains with, in this process, without Ray or DeepSpeed."""
        features = load_features(base_folder("tiny"), "cpu") if job.losses.needs_features else None
        return assemble(job, self.model, self.photos, features, PlainEngine, samples=samples)

    def samples(self, job: TrainJob) -> list[dict[str, Any]]:
        """The rows of the job's teacher cache; none for a live teacher."""
        if job.teacher.mode != "cached":
            return []
        maker = SampleMaker(job, self.model, self.photos, Teacher(self.model, job.concepts))
        return list(maker.make(range(job.teacher.samples)))

    def slider(self, state: TrainState, name: str) -> Slider:
        """A slider of a run, with its weights of this moment."""
        job, model = state.job, self.model
        card = Card(
            name=name,
            base="tiny",
            base_id=model.base_id,
            family=model.family,
            part=model.part,
            prompts=job.concepts[name],
            rank=job.rank,
        )
        return state.bank.to_slider(card)

    @torch.no_grad()
    def effect(
        self, slider: Slider, attribute: str, strengths: tuple[float, ...] = (1.0,)
    ) -> dict[str, float]:
        """What the slider does to the held-out faces at `strengths`.

        effect: mean move of the attribute, times the strength's sign. drift: mean absolute move of
        the others. identity, perceptual: similarity with, and distance from, the face.
        """
        editor = Editor(self.model, [slider], EditorSettings())
        pixels = pixels_of(self.held_out)
        mixes = [editor.mix({slider.reference: s}) for s in strengths]
        edits = [Edit(f"held-{i}", photo, mixes) for i, photo in enumerate(pixels)]
        done = [editor.edit(edits[i : i + 16]) for i in range(0, len(edits), 16)]
        editor.close()
        outputs = [out for part in done for outcome in part for out in outputs_of(outcome)]
        flat = torch.stack([torch.from_numpy(out.pixels) for out in outputs])
        seen = flat.permute(0, 3, 1, 2) / 127.5 - 1
        reader = self.judges.reader
        read = reader.read(seen).view(len(pixels), len(strengths), -1)
        start = reader.read(self.held_out)[:, None]
        sign = torch.tensor(strengths).sign()[None, :, None]
        move = (read - start) * sign
        own = reader.names.index(attribute)
        others = [i for i in range(len(reader.names)) if i != own]
        faces_again = self.held_out.repeat_interleave(len(strengths), 0)
        return {
            "effect": float(move[:, :, own].mean()),
            "drift": float(move[:, :, others].abs().mean()),
            "identity": float(self.judges.identity.similarity(seen, faces_again).mean()),
            "perceptual": float(self.judges.perceptual.distance(seen, faces_again).mean()),
        }


class ForwardCounter:
    """Counts rows that go through the denoiser; a row with a backward pass counts three times."""

    def __init__(self, denoiser: nn.Module):
        self.rows = 0
        denoiser.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        sample = output[0] if isinstance(output, tuple) else output.sample
        self.rows += len(sample) * (3 if torch.is_grad_enabled() else 1)


@dataclass
class Race:
    """How one contestant got to the goal."""

    seconds: float
    forward_equivalents: int
    steps: int
    effect: float
    drift: float
    reached: bool
    trail: list[dict[str, float]] = field(default_factory=list)


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


def race(
    bench: TrainBench,
    mode: str,
    attribute: str,
    seed: int,
    goal: float,
    look_every: int,
    report: Callable[[str], None],
) -> Race:
    """Train until the attribute moves by `goal` at strength 1, judged every `look_every` steps."""
    job = bench_job(attribute, seed, **MODES[mode])
    with fresh_hooks(bench.model):
        bench.counter.rows = 0
        begun = time.perf_counter()
        state = bench.train_state(job, bench.samples(job))
        spent, trail, found = time.perf_counter() - begun, [], {"effect": 0.0, "drift": 0.0}
        rows = bench.counter.rows
        for step in range(job.steps):
            bench.counter.rows, begun = 0, time.perf_counter()
            one_step(state, step)
            spent += time.perf_counter() - begun
            rows += bench.counter.rows
            if (step + 1) % look_every == 0:
                found = bench.effect(bench.slider(state, attribute), attribute)
                trail.append({"step": step + 1, "seconds": spent, **found})
                if found["effect"] >= goal:
                    break
    reached = found["effect"] >= goal
    report(
        f"{attribute} seed {seed} {mode}: {spent:.1f} s, {step + 1} steps, {rows} "
        f"forward-equivalents, effect {found['effect']:+.3f}, drift {found['drift']:.4f}"
        f"{'' if reached else ' (goal not reached)'}"
    )
    return Race(spent, rows, step + 1, found["effect"], found["drift"], reached, trail)


GOALS = {"chubby": 0.35, "smile": 0.25, "age": 0.5}
"""Attribute -> the move at strength 1 that ends a race (of a range of 1)."""
LOOK_EVERY = {"concept_sliders": 10, "live": 5, "cached": 5}


def train(attributes: list[str], seeds: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Races over attributes and seeds.

    wall_ratio_cached, wall_ratio_live: medians of the reference's seconds over theirs, within an
    attribute and a seed; `_spread`: min and max. forward_equivalents: medians by mode.
    drift_per_effect: medians by mode, at the goal.
    """
    bench = TrainBench.load()
    races: dict[str, list[Race]] = {mode: [] for mode in MODES}
    for attribute in attributes:
        for seed in range(seeds):
            for mode in MODES:
                one = race(bench, mode, attribute, seed, GOALS[attribute], LOOK_EVERY[mode], report)
                races[mode].append(one)
    figures: dict[str, Any] = {"attributes": attributes, "seeds": seeds}
    reference = races["concept_sliders"]
    for mode in ("cached", "live"):
        ratios = [a.seconds / b.seconds for a, b in zip(reference, races[mode], strict=True)]
        figures[f"wall_ratio_{mode}"] = statistics.median(ratios)
        figures[f"wall_ratio_{mode}_spread"] = [min(ratios), max(ratios)]
    for key, value in (
        ("wall_seconds", lambda r: r.seconds),
        ("forward_equivalents", lambda r: r.forward_equivalents),
        ("effect", lambda r: r.effect),
        ("drift_per_effect", lambda r: r.drift / max(r.effect, 1e-6)),
        ("reached", lambda r: r.reached),
    ):
        figures[key] = {mode: statistics.median(map(value, runs)) for mode, runs in races.items()}
    return figures
