"""Sliders by exact version: from the registry on first use, in memory as long as they are used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

if TYPE_CHECKING:
    from bs_ray.serve.metrics import Origin


class SliderCache:
    """The most recently used sliders of a registry. For one event loop."""

    def __init__(
        self,
        registry: Registry,
        most: int,
        base_id: str,
        loaded: Callable[[Origin], None],
        first: Mapping[str, Slider],
    ):
        """most: sliders in memory. loaded: told where each came from, "memory" or "registry", or
        "failed".

        first: what is in memory already.
        """
        self._registry, self._most, self._base_id, self._loaded = registry, most, base_id, loaded
        # References, least recently used first. A version never changes, so neither does its entry.
        self._held: OrderedDict[str, Slider | asyncio.Future[Slider]] = OrderedDict(first)

    async def take(self, references: Iterable[str]) -> dict[str, Slider]:
        """Reference -> slider. Raises SliderError, and what the registry's store raises."""
        references = list(references)
        found = await asyncio.gather(*(self._get(reference) for reference in references))
        return dict(zip(references, found, strict=True))

    def held(self) -> list[str]:
        """References in memory, least recently used first."""
        return list(self._held)

    async def _get(self, reference: str) -> Slider:
        if reference in self._held:
            self._held.move_to_end(reference)
            self._loaded("memory")
        else:
            self._loaded("registry")
            reading = asyncio.ensure_future(asyncio.to_thread(self._read, reference))
            # Whoever still waits then: a failure is told to those, and to nobody later.
            reading.add_done_callback(lambda done: self._forget_failure(reference, done))
            self._held[reference] = reading
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        held = self._held[reference]
        # Others may wait for the same: one who leaves must not end it for them.
        return held if isinstance(held, Slider) else await asyncio.shield(held)

    def _forget_failure(self, reference: str, reading: asyncio.Future[Slider]) -> None:
        if not reading.cancelled() and reading.exception():
            self._loaded("failed")
            if self._held.get(reference) is reading:
                del self._held[reference]

    def _read(self, reference: str) -> Slider:
        slider = self._registry.resolve(reference)
        slider.check_base(self._base_id)
        return slider
