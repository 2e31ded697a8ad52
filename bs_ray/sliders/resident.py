"""Many sliders in few slots: which of them stand in the bank, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.slider import Slider


class Resident:
    """A bank of fixed size into which sliders are loaded as batches need them. Not thread-safe.

    Its tensors stay the same ones, so a compiled graph outlives every change of sliders.
    """

    def __init__(
        self, model: DiffusionModel, slots: int, rank: int, layers: Sequence[str] | None = None
    ):
        """rank: the highest of any slider to come.

        layers: all that those sliders may move, `model.slider_targets()` by default; imported ones
        may need more.
        """
        self._base_id = model.base_id
        layers = model.slider_targets() if layers is None else layers
        self.bank = SliderBank.empty(model.denoiser, layers, slots, rank)
        self._free = list(reversed(range(slots)))
        # By id, least recently used first. Each keeps its slider, whose id is thus no other's.
        self._held: OrderedDict[int, tuple[Slider, int]] = OrderedDict()

    def use(self, sliders: Sequence[Slider]) -> list[int]:
        """Load what is missing; each slider's slot, the bank's column of strengths for it.

        Nothing of one call displaces anything else of it. A slider is known again by being the same
        object, so keep those that are asked for repeatedly. Raises SliderError where there are more
        sliders than slots, or one does not fit the base or the bank.
        """
        asked = {id(slider): slider for slider in sliders}
        slots = len(self.bank.names)
        if len(asked) > slots:
            raise SliderError(
                f"resident sliders: got {len(asked)} in one batch; expected at most {slots}. "
                "Split the batch, or make the bank larger"
            )
        missing = [key for key in asked if key not in self._held]
        for key in asked:
            if key in self._held:
                self._held.move_to_end(key)
        for key in missing:
            self._held[key] = asked[key], self._load(asked[key])
        return [self._held[id(slider)][1] for slider in sliders]

    def _load(self, slider: Slider) -> int:
        """Into a free slot, or that of the least recently used slider."""
        slider.check_base(self._base_id)
        oldest = None if self._free else next(iter(self._held))
        slot = self._free[-1] if oldest is None else self._held[oldest][1]
        self.bank.load(slot, slider)  # raises before anything is changed
        if oldest is None:
            self._free.pop()
        else:
            del self._held[oldest]
        return slot
