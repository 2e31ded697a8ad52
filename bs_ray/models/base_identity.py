"""Whether a slider was trained on a base: the answer that needs no torch, for those that route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs_ray.models.base import DiffusionModel


@dataclass(frozen=True)
class BaseIdentity:
    """What tells whether a slider was trained on this base."""

    id: str
    family: str
    """As in `models.FAMILIES`, such as "sdxl"."""
    former: tuple[str, ...] = ()
    """Ids that earlier versions gave to this base."""
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False, compare=False)
    """The shape of each of the denoiser's weights, by layer; empty where nobody has looked."""

    @classmethod
    def of(cls, model: DiffusionModel) -> BaseIdentity:
        """That of a loaded base."""
        return cls(model.base_id, model.family, model.former_ids)

    def goes_by(self, base_id: str) -> bool:
        """Whether an id is this base's; "" stands for a base that nobody knows."""
        return base_id in ("", self.id, *self.former)
