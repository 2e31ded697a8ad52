"""A slider: low-rank factors and the card that explains them, in one safetensors file.

Keys are diffusers' own: `<part>.<layer>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], where
the part is "unet" or "transformer". alpha / r is folded into B, so that scale 1.0 of any other
loader is our LoRA scale 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bs_ray.config import Words
from bs_ray.sliders.card import CARD_KEY, Card, SliderError, not_a_slider
from bs_ray.sliders.words import card_of_words


@dataclass(frozen=True)
class Slider:
    """A card, and the float32 factors of each layer: (A [r, in, ...], B [out, r, ...])."""

    card: Card
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def reference(self) -> str:
        """name@version."""
        return self.card.reference

    @classmethod
    def of_words(cls, words: Words, base: str, base_id: str, name: str | None = None) -> Self:
        """The words as a slider of this base. name: `words.label` where left out."""
        return cls(card_of_words(words, base, base_id, name), {})

    def to_bytes(self) -> bytes:
        """The safetensors file; equal sliders give equal bytes."""
        tensors = {}
        for layer, (a, b) in sorted(self.factors.items()):
            tensors[f"{self.card.part}.{layer}.lora_A.weight"] = a.detach().float().contiguous()
            tensors[f"{self.card.part}.{layer}.lora_B.weight"] = b.detach().float().contiguous()
        # A single header entry, since safetensors writes several in no fixed order.
        return save(tensors, metadata={CARD_KEY: self.card.to_json()})

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Slider:
        """Read what `to_bytes` wrote. Raises SliderError, which names `source`, for anything
        else."""
        card = Card.of_file(data, source)
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise not_a_slider(source, error) from None
        factors = {}
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                stem = key.removesuffix(".lora_A.weight")
                b = tensors[f"{stem}.lora_B.weight"]
                factors[stem.removeprefix(f"{card.part}.")] = (a.float(), b.float())
        if not all(torch.isfinite(t).all() for pair in factors.values() for t in pair):
            raise SliderError(f"slider {source}: got weights that are not finite; train it again")
        return cls(card, factors)

    def check_base(self, base_id: str) -> None:
        """Raise SliderError unless the slider was trained on the base with this hash.

        An imported slider that names no base passes: the shapes of its layers decide (`attach`).
        """
        if self.card.base_id and self.card.base_id != base_id:
            raise SliderError(
                f"slider {self.reference}: got base {base_id}; expected {self.card.base_id} "
                f"({self.card.base}), which it was trained on. Use that base, or train it again"
            )
