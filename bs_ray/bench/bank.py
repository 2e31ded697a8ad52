"""The slider bank against PEFT: the same mixes of sliders, in one batch and one by one.

Contestants, each over the same rows, timed in turn within every repeat:
    bare           the network without sliders, all rows in one batch
    uniform        the bank, all rows in one batch, every row one slider at strength 1
    mixed          the bank, all rows in one batch, every row its own mix and strengths
    peft_uniform   PEFT in all rows of one batch: one state for all, the least it can do
    set_adapters   PEFT as diffusers offers it: for each row its mix by set_adapters, then a forward
                   of that row alone
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bs_ray.config import Prompts
from bs_ray.models import load_base
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.artifact import Card, Slider
from bs_ray.sliders.bank import SliderBank

RESIDENT = (1, 4, 16, 64)
HEADLINE = 16
"""Resident sliders of the figures that stand for all: the fewest that give every row another mix of
up to `_MOST_MIXED` without favouring the bank by what a long list costs set_adapters."""
_MOST_MIXED = 3
"""Rows take 1, 2 and 3 sliders in turn."""
_RANK = 4


@torch.no_grad()
def bank(
    base: str, rows: int, repeats: int, say: Callable[[str], None],
    resident: tuple[int, ...] = RESIDENT,
) -> dict[str, Any]:  # fmt: skip
    """Figures of the bank and of PEFT over `rows` rows, by number of resident sliders.

    bank_max_error: largest difference of a row's prediction from PEFT's, absolute (noise has
    standard deviation 1), over all rows and stages; bank_moves: largest move by the sliders there.
    mixed_over_uniform, mixed_over_set_adapters: ratios of rows/s at HEADLINE resident sliders (the
    nearest measured), medians over repeats, `_spread` their min and max, `_by_resident` medians.
    row_seconds: medians by contestant and resident sliders; `bare` has none.
    """
    race = Race.load(base, rows, resident)
    taken: dict[int, dict[str, list[float]]] = {}
    errors = []
    for count in resident:
        race.set_up(count)
        taken[count] = {name: [] for name in race.contestants}
        for _ in range(repeats):
            for name, work in race.contestants.items():
                taken[count][name].append(race.timed(work))
        errors.append(race.errors())
        race.bank.detach()
        medians = {n: statistics.median(s) / rows * 1000 for n, s in taken[count].items()}
        told = ", ".join(f"{name} {ms:.1f}" for name, ms in medians.items())
        say(f"{count} resident sliders, ms a row: {told}")
    figures: dict[str, Any] = {"rows": rows, "repeats": repeats}
    figures["bank_max_error"], figures["bank_moves"] = (max(c) for c in zip(*errors, strict=True))
    headline = min(resident, key=lambda count: abs(count - HEADLINE))
    for other in ("uniform", "set_adapters"):
        ratios = {
            count: [b / a for a, b in zip(seconds["mixed"], seconds[other], strict=True)]
            for count, seconds in taken.items()
        }
        shown = ratios[headline]
        figures[f"mixed_over_{other}"] = statistics.median(shown)
        figures[f"mixed_over_{other}_spread"] = [min(shown), max(shown)]
        figures[f"mixed_over_{other}_by_resident"] = {
            str(count): statistics.median(found) for count, found in ratios.items()
        }
    return figures | {"row_seconds": _row_seconds(taken, rows)}


def _row_seconds(taken: dict[int, dict[str, list[float]]], rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {str(count): statistics.median(s[name]) / rows for count, s in taken.items()}
        for name in next(iter(taken.values()))
    }
    return found | {"bare": statistics.median(found["bare"].values())}


@dataclass
class Race:
    """Two copies of a base, one for the bank and one for PEFT, and rows to put through them."""

    model: DiffusionModel
    peft: DiffusionModel
    sliders: list[Slider]
    x: Tensor  # latents [B, C, h, w], noise
    t: Tensor  # int64 [B], all different
    told: Condition
    bank: SliderBank
    mixes: Tensor  # float32 [B, resident]: strengths, 0 for sliders that the row does not use
    predictions: dict[str, Tensor]
    contestants: dict[str, Callable[[], Tensor]]

    @classmethod
    def load(cls, base: str, rows: int, resident: tuple[int, ...]) -> Race:
        model = load_base(base)
        x = batch_noise(model.latent_shape, [0] * rows, [str(i) for i in range(rows)], 0)
        t = torch.linspace(0, model.prediction.num_train_timesteps - 1, rows).long()
        told = model.embed(["a photo of a person"]).repeat(rows)
        sliders = [random_slider(model, f"slider{i}", seed=i) for i in range(max(resident))]
        some = SliderBank.of(sliders[:1])
        return cls(model, load_base(base), sliders, x, t, told, some, torch.empty(0), {}, {})

    def set_up(self, count: int) -> None:
        """The first `count` sliders resident in the bank and in PEFT, and mixes of them."""
        rows, adapters = len(self.x), _adapters(self.peft)
        for slider in self.sliders[:count]:
            if slider.card.name not in adapters:
                load_adapter(self.peft, slider)
        self.bank = SliderBank.of(self.sliders[:count])
        self.bank.attach(self.model.denoiser)
        self.mixes = random_mixes(rows, count)
        uniform = torch.zeros(rows, count)
        uniform[:, 0] = 1
        self.contestants = {
            "bare": lambda: self.model.predict(self.x, self.t, self.told),
            "uniform": lambda: self._by_bank(uniform),
            "mixed": lambda: self._by_bank(self.mixes),
            "peft_uniform": self._peft_uniform,
            "set_adapters": self._set_adapters,
        }
        for name, work in self.contestants.items():
            self.predictions[name] = work()  # the first of each is not timed

    def timed(self, work: Callable[[], Tensor]) -> float:
        """Seconds. What PEFT's way needs beforehand belongs to it."""
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def errors(self) -> tuple[float, float]:
        """(largest difference between bank and PEFT, largest move from the bare network)."""
        mixed, theirs = self.predictions["mixed"], self.predictions["set_adapters"]
        moved = mixed - self.predictions["bare"]
        return float((mixed - theirs).abs().max()), float(moved.abs().max())

    def _by_bank(self, strengths: Tensor) -> Tensor:
        with self.bank.strengths(strengths):
            return self.model.predict(self.x, self.t, self.told)

    def _peft_uniform(self) -> Tensor:
        self._denoiser.set_adapters([self.sliders[0].card.name], [1.0])
        return self.peft.predict(self.x, self.t, self.told)

    def _set_adapters(self) -> Tensor:
        done = []
        for row, strengths in enumerate(self.mixes.tolist()):
            mix = {s.card.name: w for s, w in zip(self.sliders, strengths, strict=False) if w}
            self._denoiser.set_adapters(list(mix), list(mix.values()))
            one = slice(row, row + 1)
            done.append(self.peft.predict(self.x[one], self.t[one], self.told.rows(one)))
        return torch.cat(done)

    @property
    def _denoiser(self) -> Any:
        return self.peft.denoiser


def random_mixes(rows: int, sliders: int) -> Tensor:
    """Strengths [rows, sliders]: 1, 2, 3 sliders a row in turn, drawn anew, signed, about 1."""
    generator = torch.Generator().manual_seed(0)
    mixes = torch.zeros(rows, sliders)
    for row in range(rows):
        used = torch.randperm(sliders, generator=generator)[: 1 + row % _MOST_MIXED]
        mixes[row, used] = torch.randn(len(used), generator=generator)
    return mixes


def load_adapter(model: DiffusionModel, slider: Slider) -> None:
    """Put a slider into the denoiser as diffusers does; there it is one of PEFT's adapters."""
    weights = {}
    for layer, (a, b) in slider.factors.items():
        weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"] = a, b
    denoiser: Any = model.denoiser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of every adapter but the first
        denoiser.load_lora_adapter(weights, prefix=None, adapter_name=slider.card.name)


def _adapters(model: DiffusionModel) -> set[str]:
    return set(getattr(model.denoiser, "peft_config", {}))


def random_slider(model: DiffusionModel, name: str, seed: int) -> Slider:
    """A slider of random weights that fits the model: for timing and plumbing."""
    trainable = SliderBank.trainable(
        [name], model.denoiser, model.slider_targets(), _RANK, float(_RANK), seed
    )
    generator = torch.Generator().manual_seed(seed)
    for up in trainable.up.values():
        up.data.normal_(std=0.02, generator=generator)
    prompts = Prompts(target="a", positive="b", negative="c")
    return trainable.to_slider(
        Card(
            name=name, base="random", base_id=model.base_id, family=model.family, part=model.part,
            prompts=prompts, rank=_RANK,
        )
    )  # fmt: skip
