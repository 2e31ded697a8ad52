"""The slider bank against PEFT: the same mixes of sliders, in one batch and one by one.

Contestants, each over the same rows, timed in turn within every repeat:
    bare           the network without sliders, all rows in one batch
    uniform        the bank, all rows in one batch, every row with one slider at strength 1
    mixed          the bank, all rows in one batch, every row with a mix of its own
    peft_uniform   PEFT, all rows in one batch, the same slider in every row: the least it can do
    set_adapters   PEFT as diffusers offers it: set_adapters for each row's mix, then a forward of
                   that row alone
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bs_ray.models import load_base
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider

RESIDENT = (1, 4, 16, 64)
HEADLINE = 16
"""Resident sliders of the headline figures: the fewest that give every row another mix of up to
`_MAX_MIXED`. With more of them a long list would slow set_adapters down."""
_MAX_MIXED = 3
"""Rows take 1, 2 and 3 sliders in turn."""
_RANK = 4


@torch.no_grad()
def bank(
    base: str,
    rows: int,
    repeats: int,
    report: Callable[[str], None],
    resident: Sequence[int] = RESIDENT,
) -> dict[str, Any]:
    """Figures of the bank and of PEFT over `rows` rows.

    resident: numbers of resident sliders to measure with, ascending. bank_max_error: the largest
    absolute difference of a mixed row's prediction from PEFT's one by one (noise has standard
    deviation 1). bank_moves: the largest move by the sliders, to compare it with.
    mixed_over_uniform, mixed_over_set_adapters: ratios of rows/s at HEADLINE resident sliders (or
    the nearest number measured), medians over the repeats. `_spread`: their min and max.
    `_by_resident`: medians by number of resident sliders. row_seconds: median seconds a row, by
    contestant and number of resident sliders.
    """
    race = Race.load(base, rows, max(resident))
    taken: dict[int, dict[str, list[float]]] = {}
    gaps = []
    for count in resident:
        with race.contestants(count) as contestants:
            first = {name: work() for name, work in contestants.items()}  # not timed
            gaps.append(
                (_gap(first["mixed"], first["set_adapters"]), _gap(first["mixed"], first["bare"]))
            )
            taken[count] = {name: [] for name in contestants}
            for _ in range(repeats):
                for name, work in contestants.items():
                    taken[count][name].append(_seconds(work))
        shown = (f"{n} {statistics.median(s) / rows * 1e3:.1f}" for n, s in taken[count].items())
        report(f"{count} resident sliders, ms a row: {', '.join(shown)}")
    figures: dict[str, Any] = {
        "rows": rows,
        "repeats": repeats,
        "cpu_threads": torch.get_num_threads(),
    }
    figures["bank_max_error"], figures["bank_moves"] = map(max, zip(*gaps, strict=True))
    return (
        figures
        | _ratios(taken, "uniform")
        | _ratios(taken, "set_adapters")
        | {
            "row_seconds": {
                name: {str(count): statistics.median(s[name]) / rows for count, s in taken.items()}
                for name in taken[resident[0]]
            }
        }
    )


def _ratios(taken: dict[int, dict[str, list[float]]], other: str) -> dict[str, Any]:
    """mixed_over_`other`, with its spread and by number of resident sliders.

    taken: resident sliders -> contestant -> seconds.
    """
    ratios = {
        count: [b / a for a, b in zip(seconds["mixed"], seconds[other], strict=True)]
        for count, seconds in taken.items()
    }
    shown = ratios[min(ratios, key=lambda count: abs(count - HEADLINE))]
    return {
        f"mixed_over_{other}": statistics.median(shown),
        f"mixed_over_{other}_spread": [min(shown), max(shown)],
        f"mixed_over_{other}_by_resident": {
            str(count): statistics.median(found) for count, found in ratios.items()
        },
    }


def _seconds(work: Callable[[], Tensor]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@dataclass
class Race:
    """Two copies of a base, one for the bank and one for PEFT, and the rows that both compute."""

    model: DiffusionModel
    peft: DiffusionModel
    sliders: list[Slider]
    x: Tensor
    """Noisy latents [B, C, h, w]."""
    t: Tensor
    """int64 [B], all different."""
    condition: Condition

    @classmethod
    def load(cls, base: str, rows: int, sliders: int) -> Race:
        model = load_base(base)
        x = batch_noise(model.latent_shape, [0] * rows, [str(i) for i in range(rows)], 0)
        t = torch.linspace(0, model.prediction.num_train_timesteps - 1, rows).long()
        condition = model.embed(["a photo of a person"]).repeat(rows)
        made = [random_slider(model, f"slider{i}", seed=i) for i in range(sliders)]
        return cls(model, load_base(base), made, x, t, condition)

    @contextmanager
    def contestants(self, resident: int) -> Iterator[dict[str, Callable[[], Tensor]]]:
        """Contestant -> its computation of all rows, with the first `resident` sliders loaded."""
        sliders, rows = self.sliders[:resident], len(self.x)
        loaded = getattr(self.peft.denoiser, "peft_config", {})
        for slider in sliders:
            if slider.card.name not in loaded:
                load_adapter(self.peft, slider)
        bank, mixes = SliderBank.of(sliders), random_mixes(rows, resident)
        uniform = torch.zeros(rows, resident)
        uniform[:, 0] = 1
        bank.attach(self.model.denoiser)
        try:
            yield {
                "bare": lambda: self.model.predict(self.x, self.t, self.condition),
                "uniform": lambda: self._by_bank(bank, uniform),
                "mixed": lambda: self._by_bank(bank, mixes),
                "peft_uniform": lambda: self._by_peft({sliders[0].card.name: 1.0}, slice(None)),
                "set_adapters": lambda: self._by_set_adapters(mixes),
            }
        finally:
            bank.detach()

    def _by_bank(self, bank: SliderBank, scales: Tensor) -> Tensor:
        return bank.predict(self.model, self.x, self.t, self.condition, scales)

    def _by_set_adapters(self, mixes: Tensor) -> Tensor:
        """mixes: float32 [B, resident sliders]."""
        names = [slider.card.name for slider in self.sliders]
        done = []
        for row, strengths in enumerate(mixes.tolist()):
            mix = {name: s for name, s in zip(names, strengths, strict=False) if s}
            done.append(self._by_peft(mix, slice(row, row + 1)))
        return torch.cat(done)

    def _by_peft(self, mix: dict[str, float], rows: slice) -> Tensor:
        denoiser: Any = self.peft.denoiser
        denoiser.set_adapters(list(mix), list(mix.values()))
        return self.peft.predict(self.x[rows], self.t[rows], self.condition.rows(rows))


def random_mixes(rows: int, sliders: int) -> Tensor:
    """Random LoRA scales [rows, sliders], signed, about 1: rows have 1, 2 and 3 sliders in turn."""
    generator = torch.Generator().manual_seed(0)
    mixes = torch.zeros(rows, sliders)
    for row in range(rows):
        used = torch.randperm(sliders, generator=generator)[: 1 + row % _MAX_MIXED]
        mixes[row, used] = torch.randn(len(used), generator=generator)
    return mixes


def load_adapter(model: DiffusionModel, slider: Slider) -> None:
    """Load a slider into the denoiser as diffusers does, as an adapter of PEFT's."""
    weights = {}
    for layer, (a, b) in slider.factors.items():
        weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"] = a, b
    denoiser: Any = model.denoiser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of every adapter but the first
        denoiser.load_lora_adapter(weights, prefix=None, adapter_name=slider.card.name)
