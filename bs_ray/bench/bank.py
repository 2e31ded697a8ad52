"""The slider bank: mixed batches against uniform ones, and against the bare network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bs_ray.config import Prompts
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.artifact import Card, Slider
from bs_ray.sliders.bank import SliderBank

_REPEATS = 9
_SLIDERS = 4


@torch.no_grad()
def bank(base: str, rows: int) -> dict[str, float]:
    """One forward of `rows` rows: bare, one slider for all, and every row its own mix.

    bank_over_bare, mixed_over_uniform: ratios of median seconds (rows/s for the latter);
    companion_max_error: how much a row moves with its companions, absolute, latents' units.
    """
    model = load_base(base)
    sliders = [random_slider(model, f"slider{i}", seed=i) for i in range(_SLIDERS)]
    full = SliderBank.of(sliders)
    keys = [str(i) for i in range(rows)]
    x = batch_noise(model.latent_shape, [0] * rows, keys, 0)
    t = torch.full((rows,), 500)
    told = model.embed(["a photo of a person"]).repeat(rows)
    uniform = torch.zeros(rows, _SLIDERS)
    uniform[:, 0] = 1
    mixed = torch.randn(rows, _SLIDERS, generator=torch.Generator().manual_seed(0))

    def forward(gates: torch.Tensor, pick: slice = slice(None)) -> torch.Tensor:
        with full.strengths(gates[pick]):
            return model.predict(x[pick], t[pick], told.rows(pick))

    def bare() -> torch.Tensor:
        return model.predict(x, t, told)

    bare_s = _median_seconds(bare)
    full.attach(model.denoiser)
    uniform_s = _median_seconds(lambda: forward(uniform))
    mixed_s = _median_seconds(lambda: forward(mixed))
    together = forward(mixed)
    alone = torch.cat([forward(mixed, slice(i, i + 1)) for i in range(rows)])
    full.detach()
    return {
        "rows": rows,
        "bare_s": bare_s,
        "bank_over_bare": uniform_s / bare_s,
        "mixed_over_uniform": uniform_s / mixed_s,
        "companion_max_error": float((together - alone).abs().max()),
    }


def random_slider(model: DiffusionModel, name: str, seed: int) -> Slider:
    """A slider of random weights that fits the model: for timing and plumbing."""
    trainable = SliderBank.trainable([name], model.denoiser, model.slider_targets(), 4, 4.0, seed)
    generator = torch.Generator().manual_seed(seed)
    for up in trainable.up.values():
        up.data.normal_(std=0.02, generator=generator)
    prompts = Prompts(target="a", positive="b", negative="c")
    return trainable.to_slider(
        Card(
            name=name, base="random", base_id=model.base_id, family=model.family, part=model.part,
            prompts=prompts, rank=4,
        )
    )  # fmt: skip


def _median_seconds(work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
