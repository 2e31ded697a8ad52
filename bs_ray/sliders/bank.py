"""The slider bank: any mix of sliders, one strength per row, in one forward pass (METHOD 5).

The factors of all sliders stand stacked by rank, A [R, in] and B [out, R], and every row carries
its own gates g: y = W x + B ((A x) * g). Rows with gate 0 are the base's own. Two forms of it,
equal to float order: *stacked* multiplies by all R ranks, g [B, R]; *gathered* by the K ranks of
each row's own sliders, g [B, K]. Training uses the same bank, stacked, with factors that require
gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bs_ray.sliders.lowrank import Gates, low_rank_update
from bs_ray.sliders.slider import Card, Slider, SliderError

_GATHERED = (4, 8)
"""Sliders a row that the gathered form comes in: few, since each is a graph of its own where the
denoiser is compiled."""
_GATHER_COST = 3
"""Gather where it spares more than this many stacked ranks for each gathered one.

A gathered rank is a product for each row alone, with factors copied out of the stack. One layer on
one CPU thread, ms: 32 rows of 16 tokens 128 wide, stacked 16 / 32 / 64 ranks 0.08 / 0.12 / 0.20,
gathered 16 ranks 0.15; 8 rows of 256 tokens 1280 wide, stacked 4.2 / 5.7 / 9.4, gathered 4.2. So a
gathered rank costs 1 to 2.5 stacked ones.
"""


class SliderBank(nn.Module):
    """Stacked low-rank factors that act on `denoiser` through forward hooks while attached."""

    def __init__(self, names: Sequence[str], ranks: Sequence[int], scale: float = 1.0):
        """names, ranks: each slider's, in the order of the strengths' columns.

        scale: alpha / r, which multiplies every strength.
        """
        super().__init__()
        self.names = list(names)
        self.scale = scale
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        sizes = torch.tensor(ranks)
        within, start = torch.arange(int(sizes.max())), (sizes.cumsum(0) - sizes)[:, None]
        # int64 [R]: which slider each stacked rank belongs to.
        self.owner: Tensor
        owner = torch.arange(len(ranks)).repeat_interleave(sizes)
        self.register_buffer("owner", owner, persistent=False)
        # int64 [sliders, highest rank]: where each slider's ranks stand in the stack; -1: none.
        self.ranks_of: Tensor
        ranks_of = torch.where(within < sizes[:, None], start + within, -1)
        self.register_buffer("ranks_of", ranks_of, persistent=False)
        self._active: Gates | None = None
        self._hooks: list = []

    @classmethod
    def of(cls, sliders: Sequence[Slider]) -> SliderBank:
        """A frozen bank of trained sliders, in this order; layers that a slider lacks stay 0."""
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
        """A frozen float32 bank of free slots for sliders of up to `rank`, see `load`."""
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
        """Fresh sliders, float32: A uniform as in nn.Linear, B zero: they start as nothing.

        A slider's A does not depend on which others are trained beside it.
        """
        bank = cls(names, [rank] * len(names), scale=alpha / rank)
        generators = [torch.Generator().manual_seed(seed) for _ in names]
        for layer in targets:
            weight: Any = denoiser.get_submodule(layer).weight
            shape = (rank, *weight.shape[1:])
            bound = 1 / weight[0].numel() ** 0.5
            a = [(torch.rand(shape, generator=g) * 2 - 1) * bound for g in generators]
            bank._put(layer, torch.cat(a), _no_update(weight, len(bank.owner)))
        return bank

    def _put(self, layer: str, a: Tensor, b: Tensor) -> None:
        key = layer.replace(".", "/")  # a parameter's name may hold no dot
        self.down[key] = nn.Parameter(a)
        self.up[key] = nn.Parameter(b)

    @torch.no_grad()
    def load(self, slot: int, slider: Slider) -> None:
        """Put a slider where another or none was: the same tensors, so compiled graphs stay valid.

        Ranks and layers of the slot that the slider lacks become 0. Raises SliderError, and
        changes nothing, where the slider has more ranks, or layers that this bank has not.
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
        """One slider of a trainable bank, the one that the card names, alpha / r folded into B."""
        own = self.owner == self.names.index(card.name)
        factors = {
            _layer(key): (a[own].detach().clone(), self.up[key][:, own].detach() * self.scale)
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
        # A compiled graph keeps the hooks that stood when it was made and looks for no others: it
        # would leave this bank out in silence (torch._dynamo.config.skip_nnmodule_hook_guards).
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def detach(self) -> None:
        """Take the hooks out: the denoiser is bit for bit the base again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def strengths(self, strengths: Tensor) -> Iterator[None]:
        """Within, row i of a forward pass moves slider j by strengths[i, j] ([B, sliders]).

        Raises SliderError where the columns are not as many as the sliders.
        """
        if strengths.shape[1] != len(self.names):
            raise SliderError(
                f"slider bank: got strengths {list(strengths.shape)}; expected a column for each "
                f"of {len(self.names)} sliders"
            )
        self._active = self._gates(strengths)
        try:
            yield
        finally:
            self._active = None

    def _gates(self, strengths: Tensor) -> Gates:
        """Strengths [B, sliders] as gates over ranks, in the form that costs less."""
        count = self._gathered_sliders(strengths)
        strengths = strengths.to(self.owner.device)
        if not count:
            return Gates(strengths[:, self.owner] * self.scale, None)
        top = strengths.abs().topk(count, dim=1).indices
        ranks = self.ranks_of[top]  # [B, count, highest rank]
        values = strengths.gather(1, top)[:, :, None] * (ranks >= 0) * self.scale
        return Gates(values.flatten(1), ranks.clamp(min=0).flatten(1))

    def _gathered_sliders(self, strengths: Tensor) -> int:
        """How many sliders of each row to gather; 0: none, stacked is cheaper or is trained."""
        rank, stacked = self.ranks_of.shape[1], len(self.owner)
        worth = [count for count in _GATHERED if _GATHER_COST * count * rank < stacked]
        if not worth or any(p.requires_grad for p in self.parameters()):
            return 0
        most = int((strengths != 0).sum(1).max())  # asked last: a GPU has to be waited for
        return next((count for count in worth if most <= count), 0)

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Gradient checkpointing of `function` (a module of the denoiser) under this bank.

        Recomputing happens in the backward pass, when the context of `strengths` has ended.
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
            # Low-rank maths in the factors' own precision: bf16 loses small strengths.
            a, b = self.down[key], self.up[key]
            update = low_rank_update(layer, inputs[0].to(a.dtype), a, b, self._active)
            return output + update.to(output.dtype)

        return add_update


def banded(strengths: Tensor, t: Tensor, bands: Tensor) -> Tensor:
    """Strengths [B, sliders] where t [B] lies in the slider's band [low, high], elsewhere 0.

    bands: int64 [sliders, 2], both ends included. Concept Sliders' `start_noise` s, which leaves
    the layout to the base, is the band [0, s]. Rows may sit at different timesteps.
    """
    inside = (t[:, None] >= bands[:, 0]) & (t[:, None] <= bands[:, 1])
    return torch.where(inside, strengths, 0)


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
