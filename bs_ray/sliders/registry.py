"""Sliders by name and version on storage: `<root>/<name>/<version>.safetensors`.

A version is never overwritten: publishing is a conditional put of the next number.
"""

from __future__ import annotations

import re
from pathlib import Path

from bs_ray.config import check_name
from bs_ray.sliders.artifact import Slider, SliderError
from bs_ray.storage import Store, split_uri

_FILE = re.compile(r"([a-z0-9][a-z0-9_-]*)/(\d{4})\.safetensors")


class Registry:
    """The sliders under one storage prefix, local or s3://."""

    def __init__(self, uri: str):
        self.store = Store(uri)

    def list(self) -> dict[str, list[int]]:
        """Every slider's versions, ascending."""
        found: dict[str, list[int]] = {}
        for entry in self.store.list():
            if match := _FILE.fullmatch(entry.key):
                found.setdefault(match[1], []).append(int(match[2]))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def publish(self, slider: Slider) -> Slider:
        """Store the slider under the next free version and return it with that version.

        A slider whose bytes already stand as the newest version is not published twice.
        """
        name = check_name(slider.card.name)
        newest = max(self.list().get(name, [0]))
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
        """`name`, `name@version`, or the path or URI of a .safetensors file.

        Raises SliderError for a slider that is not there, naming those that are.
        """
        if reference.endswith(".safetensors"):
            return _read_file(reference)
        name, _, version = reference.partition("@")
        check_name(name)
        known = self.list()
        if name not in known:
            raise SliderError(
                f"slider: got {name!r}; expected one of {', '.join(known) or '(none published)'} "
                f"in {self.store.uri}. Train it first: bs-ray train JOB.yaml"
            )
        wanted = int(version) if version.isdigit() else known[name][-1]
        if wanted not in known[name] or (version and not version.isdigit()):
            raise SliderError(
                f"slider: got {reference!r}; expected a version of {name} among {known[name]}"
            )
        key = _key(name, wanted)
        return Slider.from_bytes(self.store.local_copy(key).read_bytes(), f"{self.store.uri}/{key}")


def slider_with_version(slider: Slider, version: int) -> Slider:
    """The same slider under another version number."""
    return Slider(slider.card.model_copy(update={"version": version}), slider.factors)


def _key(name: str, version: int) -> str:
    return f"{name}/{version:04d}.safetensors"


def _read_file(uri: str) -> Slider:
    store, key = split_uri(uri)
    if "://" not in uri and not Path(uri).is_file():
        raise SliderError(f"slider: got {uri}, which is not a file; expected a .safetensors slider")
    return Slider.from_bytes(store.read(key), uri)
