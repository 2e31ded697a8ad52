"""Sliders by name and version on storage: `<root>/<name>/<version>.safetensors`.

A version is never overwritten: publishing creates the next number, which only one writer can.
Cards are read without torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from bs_ray.config import check_name
from bs_ray.config.base import OtherBases
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import Card, SliderError
from bs_ray.storage import MissingKeyError, Store, split_uri

if TYPE_CHECKING:
    from bs_ray.models.base_identity import BaseIdentity
    from bs_ray.sliders.slider import Slider

_FILE = re.compile(r"([a-z0-9][a-z0-9_-]*)/(\d{4})\.safetensors")
_VERSION = re.compile(r"[0-9]{1,4}")


class Measurement(BaseModel):
    """What a slider does on a base that it was not trained on, in a file beside the slider's."""

    base: str
    base_id: str
    calibration: Calibration


class Registry:
    """The sliders under one storage prefix, local or s3://."""

    def __init__(self, uri: str):
        self.store = Store(uri)

    def list(self) -> dict[str, Sequence[int]]:
        """Every slider's versions, ascending."""
        return self._listed("")

    def versions(self, name: str) -> Sequence[int]:
        """One slider's versions, ascending, without listing the others. Raises ValueError."""
        return self._listed(f"{check_name(name)}/").get(name, [])

    def _listed(self, prefix: str) -> dict[str, Sequence[int]]:
        found: dict[str, list[int]] = {}
        for entry in self.store.list(prefix):
            if match := _FILE.fullmatch(entry.key):
                found.setdefault(match[1], []).append(int(match[2]))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def publish(self, slider: Slider) -> Slider:
        """Store the slider under the next free version and return it with that version.

        A slider whose bytes are those of the newest version is not published again.
        """
        name = slider.card.name
        newest = max(self.versions(name), default=0)
        if newest:
            present = slider_with_version(slider, newest)
            if self.store.read(_key(name, newest)) == present.to_bytes():
                return present
        version = newest + 1
        while True:
            numbered = slider_with_version(slider, version)
            if self.store.write_if_absent(_key(name, version), numbered.to_bytes()):
                return numbered
            version += 1

    def resolve(self, reference: str) -> Slider:
        """The slider of `name`, `name@version`, or the path or URI of a .safetensors file.

        A named version is read without listing the registry. Raises SliderError for a slider that
        does not exist; the message lists those that do.
        """
        from bs_ray.sliders.slider import Slider

        return Slider.from_bytes(*self._file(reference))

    def card(self, reference: str) -> Card:
        """The card of a slider that `resolve` would return, without its weights."""
        return Card.of_file(*self._file(reference))

    def _file(self, reference: str) -> tuple[bytes, str]:
        """A slider's file, and what to call it. Raises SliderError."""
        if reference.endswith(".safetensors"):
            return _read_file(reference)
        name, at, version = reference.partition("@")
        check_name(name)
        if not at and (versions := self.versions(name)):
            version = str(versions[-1])
        if not _VERSION.fullmatch(version):
            raise self._missing(reference)
        key = _key(name, int(version))
        try:
            data = self.store.local_copy(key).read_bytes()
        except MissingKeyError:
            raise self._missing(reference) from None
        return data, f"{self.store.uri}/{key}"

    def resolve_on(self, reference: str, base: BaseIdentity, others: OtherBases = "warn") -> Slider:
        """The slider as a base uses it (`Slider.on`), with what `keep_calibration` stored for that
        base. Raises SliderError, too, for a slider that does not fit the base."""
        slider = self.resolve(reference)
        used = slider.on(base, others)
        own = base.goes_by(slider.card.base_id)
        if own and slider.card.calibration:
            return used
        store, key = self._place(reference, slider)
        try:
            data = store.read(_measured_key(key, base))
        except MissingKeyError:
            return used
        found = Measurement.model_validate_json(data).calibration
        note = "" if own or others == "allow" else used.card.elsewhere.partition(", and its")[0]
        card = used.card.model_copy(update={"calibration": found, "elsewhere": note})
        return replace(used, card=card)

    def keep_calibration(
        self, reference: str, base: BaseIdentity, name: str, calibration: Calibration
    ) -> str:
        """Store beside a slider what it does on a base that it was not trained on, in place of an
        earlier measurement. Returns where it lies. name: the base's, for people."""
        store, key = self._place(reference, self.resolve(reference))
        kept = Measurement(base=name, base_id=base.id, calibration=calibration)
        store.write(_measured_key(key, base), kept.model_dump_json(indent=1).encode())
        return f"{store.uri}/{_measured_key(key, base)}"

    def _place(self, reference: str, slider: Slider) -> tuple[Store, str]:
        """The store and the key of a slider's file."""
        if reference.endswith(".safetensors"):
            return split_uri(reference)
        return self.store, _key(slider.card.name, slider.card.version)

    def _missing(self, reference: str) -> SliderError:
        name = reference.partition("@")[0]
        if versions := self.versions(name):
            return SliderError(
                f"slider: got {reference!r}; expected a version of {name} among {versions}"
            )
        return SliderError(
            f"slider: got {name!r}; expected one of {', '.join(self.list()) or '(none published)'} "
            f"in {self.store.uri}. Train it first: bs-ray train JOB.yaml"
        )


def slider_with_version(slider: Slider, version: int) -> Slider:
    """The same slider under another version number."""
    from bs_ray.sliders.slider import Slider

    return Slider(slider.card.model_copy(update={"version": version}), slider.factors)


def _measured_key(key: str, base: BaseIdentity) -> str:
    return f"{key.removesuffix('.safetensors')}.on-{base.id}.json"


def _key(name: str, version: int) -> str:
    return f"{name}/{version:04d}.safetensors"


def _read_file(uri: str) -> tuple[bytes, str]:
    store, key = split_uri(uri)
    if "://" not in uri and not Path(uri).is_file():
        raise SliderError(f"slider: got {uri}, which is not a file; expected a .safetensors slider")
    return store.read(key), uri
