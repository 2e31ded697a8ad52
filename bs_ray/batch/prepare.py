"""A job that has been checked: what to edit, with what, before any work."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from bs_ray import __version__
from bs_ray.batch.input_list import InputList, open_input_list, read_input_list
from bs_ray.batch.listing import Listing, list_photos
from bs_ray.batch.rows import Edits
from bs_ray.config import EditJob
from bs_ray.editing.gate import check_gate
from bs_ray.judges.load import find_judges
from bs_ray.models import absolute_base, base_folder, identify_base
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider, SliderError
from bs_ray.storage import MissingBucketError, Store

_TOLD = 100_000  # photos listed between two words about it


class EditFailed(RuntimeError):
    """The job cannot go on; what is done is committed, and the message says what to do."""


@dataclass(frozen=True)
class PreparedJob:
    """What the pipeline works from."""

    job: EditJob
    """With absolute places: workers have working folders of their own."""
    output: Store
    input_list: InputList
    names: Mapping[str, str]
    """Reference in the job -> the slider's name, as the Editor knows it."""

    @cached_property
    def edits(self) -> Edits:
        """What every photo without a plan of its own is made into."""
        return self.job.edits(self.names)

    @property
    def moves_nothing(self) -> bool:
        """Whether every output is its input: no slider moves, and the method keeps the photo."""
        still = not any(strength for mix in self.edits.values() for strength in mix.values())
        return still and not self.job.plan and self.job.editor.method == "displacement"

    @property
    def stamp(self) -> dict[str, Any]:
        """What every output of the job says of its making, whatever its strengths."""
        return {name: self.input_list.settings[name] for name in ("base_id", "seed", "bs_ray")}

    @property
    def references(self) -> dict[str, str]:
        """Slider's name -> name@version."""
        used = self.input_list.settings["sliders"]
        return {self.names[given]: slider["reference"] for given, slider in used.items()}


def prepare(job: EditJob, console: Console) -> PreparedJob:
    """Check everything that can be checked without work; pin the input on the first run.

    Raises ValueError (StorageError, SliderError, BaseNotFound, EmptyInputError, JobChangedError).
    """
    source, output, registry = Store(job.input), Store(job.output), Registry(job.registry)
    source.check()
    with contextlib.suppress(MissingBucketError):  # a missing folder will be made
        output.check()  # reading would wait a minute for a store that does not answer
    before = read_input_list(output)
    pinned = before.settings["sliders"] if before else {}
    sliders = resolve(job, registry, pinned, console)
    if not before:
        output.check(write=True)
    input_list = open_input_list(
        output,
        _settings(job, source, sliders),
        job.shard_images,
        lambda folder: listed(job, source, folder, console),
    )
    places = {
        "input": source.uri,
        "output": output.uri,
        "registry": registry.store.uri,
        "base": absolute_base(job.base),
    }
    names = {reference: slider.card.name for reference, slider in sliders.items()}
    return PreparedJob(job.model_copy(update=places), output, input_list, names)


def listed(job: EditJob, source: Store, folder: Path, console: Console) -> Listing:
    """The job's input, in a file in `folder`; says how far it is where there are many."""
    told = 0

    def seen(count: int) -> None:
        nonlocal told
        if count // _TOLD > told:
            told = count // _TOLD
            console.print(f"{job.name}: {count:,} photos listed so far", highlight=False)

    return list_photos(source, job, folder, seen)


def resolve(
    job: EditJob, registry: Registry, pinned: Mapping[str, dict[str, Any]], console: Console
) -> dict[str, Slider]:
    """Reference in the job -> slider. A job that has begun keeps its versions (`pinned`) to the
    end. Raises SliderError, and BaseNotFound for a gate without its judges.
    """
    base_id, sliders = identify_base(job.base), {}
    if job.gate:
        check_gate(find_judges(base_folder(job.base)), job.gate)
    for reference in job.sliders:
        newest = registry.resolve(_place(reference))
        slider = registry.resolve(pinned[reference]["place"]) if reference in pinned else newest
        if slider.reference != newest.reference:
            console.print(
                f"{job.name}: goes on with {slider.reference}, as it began; {newest.reference} is "
                "newer, and another output would use it.",
                soft_wrap=True,
            )
        slider.check_base(base_id)
        sliders[reference] = slider
    names = {reference: slider.card.name for reference, slider in sliders.items()}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise SliderError(f"sliders: got {twice[0]} more than once; expected each slider once")
    if not job.plan:
        _check_strengths(job, sliders, console)
    return sliders


def _check_strengths(job: EditJob, sliders: Mapping[str, Slider], console: Console) -> None:
    for reference, given in job.sliders.items():
        card = sliders[reference].card
        for strength in given if isinstance(given, list) else [given]:
            card.scale_of(strength, job.editor.calibrated)
            if note := card.beyond(strength, job.editor.calibrated):
                console.print(f"{job.name}: {note}", soft_wrap=True)


def _place(reference: str) -> str:
    """A slider's file by its full path, for workers elsewhere; names stay as they are."""
    is_path = reference.endswith(".safetensors") and "://" not in reference
    return str(Path(reference).absolute()) if is_path else reference


_DECISIVE = {
    "editor",
    "gate",
    "seed",
    "shard_images",
    "batch_size",
    "max_pixels",
    "max_bytes",
    "decode_s",
    "decode_mb",
    "input_format",
    "key_column",
    "image_column",
    "limit",
    "sample",
    "plan",
    "sink",
}


def _settings(job: EditJob, source: Store, sliders: Mapping[str, Slider]) -> dict[str, Any]:
    """What decides an output's pixels and place, and so must not change between runs of a job.

    batch_size and shard_images are part of it: they decide a photo's companions in a forward
    pass, and with them the last bits of its floats. Where and how fast a job runs is not.
    """
    used = {
        reference: {
            "place": _place(reference) if "." in reference else slider.reference,
            "reference": slider.reference,
            "sha256": digest(slider),
            "strength": job.sliders[reference],
        }
        for reference, slider in sliders.items()
    }
    return {
        **job.model_dump(mode="json", include=_DECISIVE),
        "input": source.uri,
        "base_id": identify_base(job.base),
        "sliders": used,
        "bs_ray": __version__,
    }


def digest(slider: Slider) -> str:
    """sha256 of a slider's file."""
    return hashlib.sha256(slider.to_bytes()).hexdigest()
