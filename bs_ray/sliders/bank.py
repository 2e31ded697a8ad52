"""The slider bank: each row of a forward pass has its own mix of sliders (docs/method.md, "The
slider bank").

The factors of all sliders are stacked by rank, A [R, in] and B [out, R], and every row carries its
own gates g, one for each rank: y = W x + B ((A x) * g). A row whose gates are 0 is the base's own.
The update is computed in one of two forms, which are equal to float order: *stacked* multiplies by
all R ranks, g [B, R]; *gathered* multiplies by the K ranks of each row's own sliders, g [B, K].
Training uses the same bank in its stacked form, with factors that require gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.lowrank import Gates, low_rank_update
from bs_ray.sliders.slider import Slider

Predict = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""predict(x_t [B], t [B], condition [B rows], lora_scales [B, sliders]) -> prediction [B]."""

LATE_ACTIVATION = 0.75
"""In generation, sliders act below this share of the noise range, so that the base decides the
layout (Gandikota et al. 2023, section 4.1)."""

_GATHERED = (4, 8)
"""The gathered form exists for these numbers of sliders a row. They are few, since each is a graph
of its own where the denoiser is compiled."""
_GATHER_COST = 3
"""Gather where one gathered rank saves more than this many stacked ones.

A gathered rank is a product for each row alone, with factors copied out of the stack. Measured on
one layer and one CPU thread, in ms: 32 rows of 16 tokens 128 wide, stacked 16 / 32 / 64 ranks 0.08
/ 0.12 / 0.20, gathered 16 ranks 0.15; 8 rows of 256 tokens 1280 wide, stacked 4.2 / 5.7 / 9.4,
gathered 4.2. So a gathered rank costs 1 to 2.5 stacked ones.
"""


class SliderBank(nn.Module):
    """Stacked low-rank factors that act on a denoiser, through forward hooks, while attached."""

    def __init__(self, names: Sequence[str], ranks: Sequence[int], alpha_over_rank: float = 1.0):
        """names, ranks: of each slider, in the order of the LoRA scales' columns.

        alpha_over_rank: alpha / r, which multiplies every LoRA scale.
        """
        super().__init__()
        self.names = list(names)
        self.alpha_over_rank = alpha_over_rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        sizes = torch.tensor(ranks)
        within, start = torch.arange(int(sizes.max())), (sizes.cumsum(0) - sizes)[:, None]
        # int64 [R]: the slider that each stacked rank belongs to.
        self.owner: Tensor
        owner = torch.arange(len(ranks)).repeat_interleave(sizes)
        self.register_buffer("owner", owner, persistent=False)
        # int64 [sliders, highest rank]: each slider's places in the stack; -1 where it has none.
        self.ranks_of: Tensor
        ranks_of = torch.where(within < sizes[:, None], start + within, -1)
        self.register_buffer("ranks_of", ranks_of, persistent=False)
        self._active: Gates | None = None
        self._hooks: list = []

    @classmethod
    def of(cls, sliders: Sequence[Slider]) -> SliderBank:
        """A frozen bank of trained sliders, in this order. In layers that a slider does not have,
        its factors are 0."""
        if not sliders:
            raise SliderError("slider bank: got no sliders; expected at least one")
        bank = cls([""] * len(sliders), [s.card.rank for s in sliders])
        total = len(bank.owner)
        for layer, (a, b) in {k: pair for s in sliders for k, pair in s.factors.items()}.items():
            down, up = a.new_zeros(total, *a.shape[1:]), b.new_zeros(len(b), total, *b.shape[2:])
            bank._put(layer, down, up)
        for slot, slider in enumerate(sliders):
            bank.load(slot, slider)
        return bank.requires_grad_(False)

    @classmethod
    def empty(cls, denoiser: nn.Module, layers: Sequence[str], slots: int, rank: int) -> SliderBank:
        """A frozen float32 bank whose free slots, for sliders of up to `rank`, `load` fills."""
        with next(denoiser.parameters()).device:
            bank = cls([""] * slots, [rank] * slots)
            for layer in layers:
                weight: Any = denoiser.get_submodule(layer).weight
                down = torch.zeros(slots * rank, *weight.shape[1:])
                bank._put(layer, down, _no_update(weight, slots * rank))
        return bank.requires_grad_(False)

    @classmethod
    def trainable(
        cls,
        names: Sequence[str],
        denoiser: nn.Module,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        seed: int,
    ) -> SliderBank:
        """New float32 sliders, which do nothing yet: A is uniform as in nn.Linear, B is zero.

        A slider's A does not depend on the sliders that are trained with it.
        """
        bank = cls(names, [rank] * len(names), alpha_over_rank=alpha / rank)
        generators = [torch.Generator().manual_seed(seed) for _ in names]
        for layer in targets:
            weight: Any = denoiser.get_submodule(layer).weight
            shape = (rank, *weight.shape[1:])
            bound = 1 / weight[0].numel() ** 0.5
            a = [(torch.rand(shape, generator=g) * 2 - 1) * bound for g in generators]
            bank._put(layer, torch.cat(a), _no_update(weight, len(bank.owner)))
        return bank

    def _put(self, layer: str, a: Tensor, b: Tensor) -> None:
        key = layer.replace(".", "/")  # a parameter's name cannot contain a dot
        self.down[key] = nn.Parameter(a)
        self.up[key] = nn.Parameter(b)

    @torch.no_grad()
    def load(self, slot: int, slider: Slider) -> None:
        """Put a slider into a slot. The tensors stay the same objects: compiled graphs stay valid.

        Ranks and layers of the slot that the slider does not have become 0. Raises SliderError,
        and changes nothing, for a slider with more ranks than the slot, or with a layer that this
        bank does not have.
        """
        own = self.ranks_of[slot]
        first, room = int(own[0]), int((own >= 0).sum())
        for layer, (a, b) in slider.factors.items():
            self._check_fits(slider, layer, a, b, room)
        for key, down in self.down.items():
            a_here, b_here = down[first : first + room], self.up[key][:, first : first + room]
            a_here.zero_(), b_here.zero_()
            if pair := slider.factors.get(_layer(key)):
                rank = len(pair[0])
                a_here[:rank].copy_(pair[0]), b_here[:, :rank].copy_(pair[1])
        self.names[slot] = slider.card.name

    def _check_fits(self, slider: Slider, layer: str, a: Tensor, b: Tensor, room: int) -> None:
        key = layer.replace(".", "/")
        what = f"slider {slider.reference}: got layer {layer}"
        if key not in self.down:
            raise SliderError(
                f"{what}; expected one of the {len(self.down)} layers of this bank. Make the bank "
                "with it"
            )
        down, up = self.down[key], self.up[key]
        if a.shape[1:] != down.shape[1:] or len(b) != len(up):
            raise SliderError(
                f"{what} of factors {tuple(a.shape)} and {tuple(b.shape)}; expected input shape "
                f"{tuple(down.shape[1:])} and {len(up)} outputs. The slider belongs to another base"
            )
        if len(a) > room:
            raise SliderError(
                f"{what} of rank {len(a)}; expected at most {room}. Make the bank with a higher "
                "rank"
            )

    def to_slider(self, card: Card) -> Slider:
        """The slider that the card names, out of a trainable bank, with alpha / r folded into B."""
        own = self.owner == self.names.index(card.name)
        factors = {
            _layer(key): (
                a[own].detach().clone(),
                self.up[key][:, own].detach() * self.alpha_over_rank,
            )
            for key, a in self.down.items()
        }
        return Slider(card, factors)

    # --- attachment ---------------------------------------------------------------------------
    def attach(self, denoiser: nn.Module) -> None:
        """Hook into the denoiser's layers; its weights are never touched.

        Raises SliderError, and hooks nothing, where this bank is attached already, or a layer is
        missing or has another shape.
        """
        if self._hooks:
            raise SliderError(
                "slider bank: got attach() while attached; expected detach() first, or every "
                "slider would count twice"
            )
        layers: dict[str, nn.Module] = dict(denoiser.named_modules())
        for key, a in self.down.items():
            _check_layer(_layer(key), layers.get(_layer(key)), (len(self.up[key]), *a.shape[1:]))
        for key in self.down:
            self._hooks.append(layers[_layer(key)].register_forward_hook(self._hook(key)))
        # A compiled graph keeps the hooks of its making and looks for no others: it would silently
        # ignore this bank (torch._dynamo.config.skip_nnmodule_hook_guards).
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def detach(self) -> None:
        """Remove the hooks: the denoiser is bit for bit the base again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def scaled(self, lora_scales: Tensor) -> Iterator[None]:
        """In the `with` block, row i of a forward pass has slider j at lora_scales[i, j].

        lora_scales: [B, sliders].

        Raises SliderError unless there is a column for each slider.
        """
        if lora_scales.shape[1] != len(self.names):
            raise SliderError(
                f"slider bank: got LoRA scales {list(lora_scales.shape)}; expected a column for "
                f"each of {len(self.names)} sliders"
            )
        self._active = self._gates(lora_scales)
        try:
            yield
        finally:
            self._active = None

    def predict(
        self, model: DiffusionModel, x_t: Tensor, t: Tensor, condition: Condition, scales: Tensor
    ) -> Tensor:
        """What `model`, to which this bank is attached, predicts at these LoRA scales [B,
        sliders]."""
        with self.scaled(scales):
            return model.predict(x_t, t, condition)

    def _gates(self, lora_scales: Tensor) -> Gates:
        """LoRA scales [B, sliders] as gates over ranks, in the form that costs less."""
        count = self._gathered_sliders(lora_scales)
        lora_scales = lora_scales.to(self.owner.device)
        if not count:
            return Gates(lora_scales[:, self.owner] * self.alpha_over_rank, None)
        top = lora_scales.abs().topk(count, dim=1).indices
        ranks = self.ranks_of[top]  # [B, count, highest rank]
        values = lora_scales.gather(1, top)[:, :, None] * (ranks >= 0) * self.alpha_over_rank
        return Gates(values.flatten(1), ranks.clamp(min=0).flatten(1))

    def _gathered_sliders(self, lora_scales: Tensor) -> int:
        """How many sliders of each row to gather; 0 in training, and where the stacked form costs
        less."""
        rank, stacked = self.ranks_of.shape[1], len(self.owner)
        worth = [count for count in _GATHERED if _GATHER_COST * count * rank < stacked]
        if not worth or any(p.requires_grad for p in self.parameters()):
            return 0
        used = int((lora_scales != 0).sum(1).max())  # last, since this waits for a GPU
        return next((count for count in worth if used <= count), 0)

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Gradient checkpointing of `function` (a module of the denoiser) under this bank.

        The backward pass recomputes it after the context of `scaled` has ended.
        """
        active = self._active

        def under_gates(*inputs: Any) -> Any:
            now, self._active = self._active, active
            try:
                return function(*inputs)
            finally:
                self._active = now

        return checkpoint(under_gates, *inputs, use_reentrant=False)

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._active is None:
                return output
            # Computed in the factors' own precision, since bf16 loses small updates.
            a, b = self.down[key], self.up[key]
            update = low_rank_update(layer, inputs[0].to(a.dtype), a, b, self._active)
            return output + update.to(output.dtype)

        return add_update


def banded(lora_scales: Tensor, t: Tensor, bands: Tensor) -> Tensor:
    """LoRA scales [B, sliders] where t [B] lies in the slider's band [low, high], and 0 elsewhere.

    bands: int64 [sliders, 2], both ends included. Concept Sliders' `start_noise` s, which leaves
    the layout to the base, is the band [0, s]. Rows may have different timesteps.
    """
    inside = (t[:, None] >= bands[:, 0]) & (t[:, None] <= bands[:, 1])
    return torch.where(inside, lora_scales, 0)


def _layer(key: str) -> str:
    return key.replace("/", ".")


def _no_update(weight: Tensor, ranks: int) -> Tensor:
    """A factor B of zeros for the layer with this weight."""
    return torch.zeros(len(weight), ranks, *[1] * (weight.dim() - 2))


def _check_layer(name: str, layer: nn.Module | None, expected: tuple[int, ...]) -> None:
    """Raise SliderError unless the layer has a weight of the expected shape."""
    weight: Any = getattr(layer, "weight", None)
    if weight is None or tuple(weight.shape) != expected:
        got = "no such layer" if weight is None else f"a layer of shape {tuple(weight.shape)}"
        raise SliderError(
            f"slider layer {name}: got {got} in this base; expected shape {expected}. The slider "
            "belongs to another base"
        )
