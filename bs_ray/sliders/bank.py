"""The slider bank: any mix of sliders, one strength per row, in one forward pass (METHOD 5).

The factors of all sliders stand stacked by rank, A [R, in] and B [out, R], and every row carries
its own gates g [B, R]: y = W x + B ((A x) * g). Rows with gate 0 are the base's own.
Training uses the same bank with one slider whose factors require gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bs_ray.sliders.artifact import Card, Slider, SliderError


class SliderBank(nn.Module):
    """Stacked low-rank factors that act on `denoiser` through forward hooks while attached."""

    def __init__(self, names: Sequence[str], owner: Tensor, scale: float = 1.0):
        """owner: int64 [R], which slider each stacked rank belongs to."""
        super().__init__()
        self.names = list(names)
        self.scale = scale
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self.owner: Tensor
        self.register_buffer("owner", owner, persistent=False)
        self._gates: Tensor | None = None
        self._hooks: list = []

    @classmethod
    def of(cls, sliders: Sequence[Slider]) -> SliderBank:
        """A frozen bank of trained sliders, in this order; layers that a slider lacks stay 0."""
        if not sliders:
            raise SliderError("slider bank: got no sliders; expected at least one")
        layers = {layer: pair for s in sliders for layer, pair in s.factors.items()}
        ranks = [s.card.rank for s in sliders]
        owner = torch.repeat_interleave(torch.arange(len(sliders)), torch.tensor(ranks))
        bank = cls([s.card.name for s in sliders], owner)
        for layer, (a, b) in layers.items():
            pairs = [
                s.factors.get(
                    layer, (a.new_zeros(r, *a.shape[1:]), b.new_zeros(b.shape[0], r, *b.shape[2:]))
                )
                for s, r in zip(sliders, ranks, strict=True)
            ]
            bank._put(layer, torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs], 1))
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
        owner = torch.arange(len(names)).repeat_interleave(rank)
        bank = cls(names, owner, scale=alpha / rank)
        generators = [torch.Generator().manual_seed(seed) for _ in names]
        for layer in targets:
            weight: Any = denoiser.get_submodule(layer).weight
            shape = (rank, *weight.shape[1:])
            bound = 1 / weight[0].numel() ** 0.5
            a = [(torch.rand(shape, generator=g) * 2 - 1) * bound for g in generators]
            up = torch.zeros(weight.shape[0], len(owner), *[1] * (weight.dim() - 2))
            bank._put(layer, torch.cat(a), up)
        return bank

    def _put(self, layer: str, a: Tensor, b: Tensor) -> None:
        key = layer.replace(".", "/")  # a parameter's name may hold no dot
        self.down[key] = nn.Parameter(a)
        self.up[key] = nn.Parameter(b)

    def to_slider(self, card: Card) -> Slider:
        """One slider of a trainable bank, the one that the card names, alpha / r folded into B."""
        own = self.owner == self.names.index(card.name)
        factors = {
            key.replace("/", "."): (
                a[own].detach().clone(), self.up[key][:, own].detach() * self.scale
            )
            for key, a in self.down.items()
        }  # fmt: skip
        return Slider(card, factors)

    # --- attachment ---------------------------------------------------------------------------
    def attach(self, denoiser: nn.Module) -> None:
        """Hook into the denoiser's layers; its weights are never touched.

        Raises SliderError where a layer is missing or has another shape.
        """
        layers: dict[str, Any] = dict(denoiser.named_modules())
        for key, a in self.down.items():
            name = key.replace("/", ".")
            layer = layers.get(name)
            weight = getattr(layer, "weight", None)
            if layer is None or weight is None or weight.shape[1:] != a.shape[1:]:
                got = (
                    "no such layer" if weight is None else f"a layer of shape {tuple(weight.shape)}"
                )
                raise SliderError(
                    f"slider layer {name}: got {got} in this base; expected input shape "
                    f"{tuple(a.shape[1:])}. The slider belongs to another base"
                )
            self._hooks.append(layer.register_forward_hook(self._hook(key)))

    def detach(self) -> None:
        """Take the hooks out: the denoiser is bit for bit the base again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def strengths(self, strengths: Tensor) -> Iterator[None]:
        """Within, row i of a forward pass moves slider j by strengths[i, j] ([B, sliders])."""
        self._gates = strengths.to(self.owner.device)[:, self.owner] * self.scale
        try:
            yield
        finally:
            self._gates = None

    def checkpointed(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Gradient checkpointing of `function` (a module of the denoiser) under this bank.

        Recomputing happens in the backward pass, when the context of `strengths` has ended.
        """
        gates = self._gates

        def under_gates(*inputs: Any) -> Any:
            now, self._gates = self._gates, gates
            try:
                return function(*inputs)
            finally:
                self._gates = now

        return checkpoint(under_gates, *inputs, use_reentrant=False)

    def _hook(self, key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._gates is None:
                return output
            return output + self._update(layer, key, inputs[0], self._gates).to(output.dtype)

        return add_update

    def _update(self, layer: nn.Module, key: str, x: Tensor, gates: Tensor) -> Tensor:
        # Low-rank maths in the factors' own precision: bf16 gates and factors lose small strengths.
        a, b = self.down[key], self.up[key]
        x = x.to(a.dtype)
        if isinstance(layer, nn.Conv2d):
            inner = F.conv2d(
                x, a, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
            )
            return F.conv2d(inner * gates[:, :, None, None], b)
        inner = F.linear(x, a)
        return F.linear(inner * gates.view(len(gates), *[1] * (x.dim() - 2), -1), b)
