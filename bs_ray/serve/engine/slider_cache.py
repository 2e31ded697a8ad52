"""A replica's sliders: read from the registry at first use, kept in memory while they are used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bs_ray.config.base import OtherBases
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

if TYPE_CHECKING:
    from bs_ray.serve.metrics import Origin


class SliderCache:
    """The most recently used sliders of a registry. For one event loop."""

    def __init__(
        self,
        registry: Registry,
        max_sliders: int,
        base: BaseIdentity,
        report: Callable[[Origin], None],
        first: Mapping[str, Slider],
        others: OtherBases = "warn",
    ):
        """max_sliders: how many stay in memory. first: place -> slider, in memory from the start.

        report(origin) is called for every slider that is asked for, and again with "failed" where
        the registry could not give it.
        """
        self._registry, self._max = registry, max_sliders
        self._base, self._others = base, others
        self._report = report
        # Place -> slider, least recently used first. A version never changes, so neither does its
        # entry.
        self._held: OrderedDict[str, Slider | asyncio.Future[Slider]] = OrderedDict(first)

    async def take(self, places: Mapping[str, str]) -> dict[str, Slider]:
        """name@version -> place becomes name@version -> slider.

        Raises SliderError, and what the registry's store raises.
        """
        found = await asyncio.gather(*(self._get(place) for place in places.values()))
        return dict(zip(places, found, strict=True))

    def held(self) -> list[str]:
        """The places in memory, least recently used first."""
        return list(self._held)

    async def _get(self, place: str) -> Slider:
        if place in self._held:
            self._held.move_to_end(place)
            self._report("memory")
        else:
            self._report("registry")
            reading = asyncio.ensure_future(asyncio.to_thread(self._read, place))
            # A failure reaches everybody who waits for this reading. Later callers read anew.
            reading.add_done_callback(lambda done: self._forget_failure(place, done))
            self._held[place] = reading
            while len(self._held) > self._max:
                self._held.popitem(last=False)
        held = self._held[place]
        # Shielded, since several callers may wait for it: one that leaves must not cancel it.
        return held if isinstance(held, Slider) else await asyncio.shield(held)

    def _forget_failure(self, place: str, reading: asyncio.Future[Slider]) -> None:
        if not reading.cancelled() and reading.exception():
            self._report("failed")
            if self._held.get(place) is reading:
                del self._held[place]

    def _read(self, place: str) -> Slider:
        return self._registry.resolve_on(place, self._base, self._others)
