"""The sliders of a server: those that its job names, in the versions that the registry has now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bs_ray.config.base import OtherBases
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.registry import Registry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A slider that requests may name."""

    card: Card
    place: str
    """What the registry resolves: name@version, or a file."""

    @property
    def reference(self) -> str:
        """name@version."""
        return self.card.reference


class Catalogue:
    """Sliders by name, looked up again every `refresh_s`, so that new versions need no restart.

    While the registry cannot be reached, the sliders known last stay. For one event loop.
    """

    def __init__(
        self,
        registry: Registry,
        references: Sequence[str],
        base: BaseIdentity,
        refresh_s: float,
        *,
        others: OtherBases = "warn",
        listed: Mapping[str, Listed] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """references: `name`, `name@version`, a file, or `*` for all that were trained on the base.
        others: whether those that are named may come from another base of its family.

        listed: the sliders to start with; by default none, until `load` is called.
        """
        self._registry, self._references = registry, list(references)
        self.base, self._others = base, others
        self._refresh_s, self._clock = refresh_s, clock
        self._listed = dict(listed or {})
        # Place -> slider, which never changes: a place is a version, or a file.
        self._known = {one.place: one for one in self._listed.values()}
        self._read_s = clock()
        self._reading: asyncio.Task[None] | None = None

    def load(self) -> dict[str, Listed]:
        """Read the registry: name -> slider. Raises SliderError and what the store raises."""
        found: dict[str, Listed] = {}
        for place in self._wanted():
            listed = self._look_up(place)
            if listed is None:
                continue
            if listed.card.name in found:
                raise SliderError(
                    f"sliders: got {listed.card.name} more than once; expected each name once"
                )
            found[listed.card.name] = listed
        self._listed, self._read_s = found, self._clock()
        return found

    async def listed(self) -> dict[str, Listed]:
        """Name -> the version that the bare name stands for now."""
        if self._clock() - self._read_s > self._refresh_s and self._reading is None:
            self._reading = asyncio.ensure_future(self._refresh())
        return self._listed

    async def find(self, reference: str) -> Listed | None:
        """The slider of `name` or `name@version`; None where this server has no such slider.

        Raises what the store raises for a version that no request has named before.
        """
        listed = await self.listed()
        name, at, version = reference.partition("@")
        if name not in listed or not at or int(version) == listed[name].card.version:
            return listed.get(name)
        if name in self._references or "*" in self._references:
            try:
                return await asyncio.to_thread(self._look_up, f"{name}@{int(version)}")
            except SliderError:
                return None
        return None  # the job names one version, or a file

    async def _refresh(self) -> None:
        """Read the registry. Meanwhile requests see the old sliders, so that none of them waits."""
        try:
            await asyncio.to_thread(self.load)
        except Exception as error:  # a store's error of any kind, or a damaged slider
            self._read_s = self._clock()
            _log.warning("sliders stay as they are: %s", error)
        finally:
            self._reading = None

    def _wanted(self) -> list[str]:
        """The places of the sliders that the job names."""
        files = all(reference.endswith(".safetensors") for reference in self._references)
        newest = {} if files else {n: v[-1] for n, v in self._registry.list().items()}
        wanted: list[str] = []
        for reference in self._references:
            if reference == "*":
                wanted += [f"{name}@{version}" for name, version in newest.items()]
            elif reference in newest:
                wanted.append(f"{reference}@{newest[reference]}")
            else:
                wanted.append(reference)
        return wanted

    def _look_up(self, place: str) -> Listed | None:
        """The slider of a place; None where all are wanted and it is another base's."""
        if place not in self._known:
            card = self._registry.card(place)
            own = self.base.goes_by(card.base_id)
            if "*" in self._references and not own:
                return None
            if not (own and card.calibration):  # another base's, or measured in a file beside it
                card = self._registry.resolve_on(place, self.base, self._others).card
            self._known[place] = Listed(card, place)
        return self._known[place]
