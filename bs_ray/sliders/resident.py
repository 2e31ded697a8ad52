"""Many sliders in few slots: which of them are in the bank; the least recently used leave first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from bs_ray.models.base import DiffusionModel
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.slider import Slider


class Resident:
    """A bank of fixed size into which sliders are loaded as batches need them. Not thread-safe.

    Its tensors stay the same objects, so a compiled graph survives every change of sliders.
    """

    def __init__(
        self, model: DiffusionModel, slots: int, rank: int, layers: Sequence[str] | None = None
    ):
        """rank: the highest of any slider that will be used.

        layers: all that those sliders may move, by default `model.slider_targets()`; imported
        sliders may need more.
        """
        self._base = BaseIdentity.of(model)
        layers = model.slider_targets() if layers is None else layers
        self.bank = SliderBank.empty(model.denoiser, layers, slots, rank)
        self._free = list(reversed(range(slots)))
        # Id -> slider and slot, least recently used first. The entry keeps the slider alive, so
        # that no other object gets its id.
        self._held: OrderedDict[int, tuple[Slider, int]] = OrderedDict()

    def use(self, sliders: Sequence[Slider]) -> list[int]:
        """Load the sliders that are missing. Returns each one's slot, its column of LoRA scales.

        Sliders of one call do not displace each other. A slider is recognised as the same object,
        so keep those that are used repeatedly. Raises SliderError where there are more sliders than
        slots, or where one does not fit the base or the bank.
        """
        wanted = {id(slider): slider for slider in sliders}
        slots = len(self.bank.names)
        if len(wanted) > slots:
            raise SliderError(
                f"resident sliders: got {len(wanted)} in one batch; expected at most {slots}. "
                "Split the batch, or make the bank larger"
            )
        missing = [key for key in wanted if key not in self._held]
        for key in wanted:
            if key in self._held:
                self._held.move_to_end(key)
        for key in missing:
            self._held[key] = wanted[key], self._load(wanted[key])
        return [self._held[id(slider)][1] for slider in sliders]

    def _load(self, slider: Slider) -> int:
        """Load into a free slot, or else into that of the least recently used slider."""
        slider.on(self._base, "allow")
        oldest = None if self._free else next(iter(self._held))
        slot = self._free[-1] if oldest is None else self._held[oldest][1]
        self.bank.load(slot, slider)  # raises before anything is changed
        if oldest is None:
            self._free.pop()
        else:
            del self._held[oldest]
        return slot
