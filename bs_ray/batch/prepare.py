"""A job that has been checked: what to edit and with what, before any work."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from bs_ray import __version__
from bs_ray.batch.changes import find_changes
from bs_ray.batch.input_list import (
    Changes,
    InputList,
    newest_input_list,
    open_input_list,
    pin_input_list,
)
from bs_ray.batch.listing import Listing, list_photos
from bs_ray.batch.rows import Edits
from bs_ray.batch.survey import absolute_input, place_of_input
from bs_ray.config import EditJob
from bs_ray.editing.gate import gate_judges
from bs_ray.editing.locate import Sight
from bs_ray.images.faces import need_centerface
from bs_ray.models import absolute_base, base_folder, identify_base, load_base
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import words_said
from bs_ray.storage import MissingBucketError, Store

_REPORT_EVERY = 100_000  # photos listed between two lines about it


class EditFailed(RuntimeError):
    """The job cannot go on; what is done is committed, and the message says what to do."""


@dataclass(frozen=True)
class PreparedJob:
    """What the pipeline works from."""

    job: EditJob
    """With absolute places, since workers have working folders of their own."""
    output: Store
    input_list: InputList
    references: Mapping[str, str]
    """Slider as the job names it -> name@version."""
    listed: bool
    """Whether this run has listed the input, so that it knows of everything there."""

    @cached_property
    def edits(self) -> Edits:
        """What is made of every photo that has no edits of its own."""
        return self.job.edits(self.references)

    @property
    def moves_nothing(self) -> bool:
        """Whether every output is its input: no slider moves, and the method keeps the photo."""
        still = not any(strength for mix in self.edits.values() for strength in mix.values())
        return still and not self.job.edits_column and self.job.editor.method == "displacement"

    @cached_property
    def sight(self) -> Sight | None:
        """How the base looks at photos; None where nobody looks."""
        return None if self.moves_nothing else sight_of(self.job)

    @property
    def stamp(self) -> dict[str, Any]:
        """What every output of the job says of its making, whatever its strengths."""
        settings = self.input_list.settings
        made = {"base_id": settings["base_id"], "seed": settings["seed"], "bs_ray": __version__}
        sliders = words_of(self.job, settings["base_id"]).values()
        words = words_said(slider.card for slider in sliders)
        return {**made, "words": words} if words else made


def prepare(job: EditJob, console: Console) -> PreparedJob:
    """Check everything that can be checked without work; pin the input on the first run.

    Later runs get the generation that is in work, or else the last whole one.

    Raises ValueError (StorageError, SliderError, BaseNotFound, EmptyInputError, JobChangedError).
    """
    source, _ = place_of_input(job.input)
    output, registry = Store(job.output), Registry(job.registry)
    source.check()
    with contextlib.suppress(MissingBucketError):  # a missing folder will be made
        output.check()  # else the first read would wait a minute for a store that is down
    before = newest_input_list(output)
    pinned = before.settings["sliders"] if before else {}
    sliders = resolve(job, registry, pinned, console)
    if not before:
        output.check(write=True)
    input_list = open_input_list(
        output,
        settings_of(job, sliders, before.settings if before else None),
        job.shard_images,
        lambda folder: listed(job, source, folder, console),
        job.shard_mb << 20,
    )
    gate = job.gate
    if gate and gate.judges:
        gate = gate.model_copy(update={"judges": gate.judges.absolute()})
    places = {
        "gate": gate,
        "input": absolute_input(job.input),
        "output": output.uri,
        "registry": registry.store.uri,
        "base": absolute_base(job.base),
    }
    references = {given: slider.reference for given, slider in sliders.items()}
    job = job.model_copy(update=places)
    return PreparedJob(job, output, input_list, references, listed=before is None)


def renewed(prepared: PreparedJob, console: Console) -> PreparedJob:
    """List the input again; where it has news, begin the generation after this whole one.

    A job that takes a part of its input is a trial and keeps what it took. Raises as `prepare`.
    """
    job, former, report = prepared.job, prepared.input_list, report_to(console, prepared.job)
    if job.limit or job.sample:
        return replace(prepared, listed=True)
    with tempfile.TemporaryDirectory() as folder:
        changes = news(job, former, Path(folder), console)
        if not changes.any:
            return replace(prepared, listed=True)
        settings = former.settings | {"bs_ray": __version__}
        now = former.generation + 1
        bounds = former.shard_images, changes, job.shard_mb << 20
        input_list = pin_input_list(former.output, now, settings, *bounds)
    report(f"generation {now}: {described(input_list.changes)}")
    return replace(prepared, input_list=input_list, listed=True)


def news(job: EditJob, former: InputList, folder: Path, console: Console) -> Changes:
    """The job's input as it is now, against a whole generation. Writes into `folder` alone."""
    same_kind = job.model_copy(update={"input_format": former.format})  # `auto` might find another
    listing = listed(same_kind, place_of_input(job.input)[0], folder, console)
    return find_changes(former, listing, job, report_to(console, job))


def described(changes: Mapping[str, int]) -> str:
    """Such as "50 new, 10 changed, 5 gone, 935 unchanged"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in changes.items() if count) or "no photos"


def report_to(console: Console, job: EditJob) -> Callable[[str], None]:
    """A function that prints lines about the job."""
    return lambda text: console.print(f"{job.name}: {text}", soft_wrap=True, highlight=False)


def sight_of(job: EditJob) -> Sight:
    """How the job's base looks at photos, told by its shapes alone. Raises BaseNotFound."""
    model = load_base(job.base, device="meta")
    side = job.editor.working_px or model.native_px
    return Sight(side, model.multiple_px, model.framing)


def listed(job: EditJob, source: Store, folder: Path, console: Console) -> Listing:
    """The job's input, in a file in `folder`; where it is large, says how far the listing is."""
    reported = 0

    def report(count: int) -> None:
        nonlocal reported
        if count // _REPORT_EVERY > reported:
            reported = count // _REPORT_EVERY
            console.print(f"{job.name}: {count:,} photos listed so far", highlight=False)

    listing = list_photos(source, job, folder, report)
    for note in listing.notes:
        console.print(f"{job.name}: {note}", highlight=False, markup=False, soft_wrap=True)
    return listing


def resolve(
    job: EditJob, registry: Registry, pinned: Mapping[str, dict[str, Any]], console: Console
) -> dict[str, Slider]:
    """Slider as the job names it -> slider. A job that has begun keeps its versions to the end.

    pinned: what the input list says of them. Raises SliderError, JudgeUnavailable for a gate whose
    judges are missing, and FacesUnavailable.
    """
    base, sliders = identify_base(job.base), {}
    if job.editor.region == "face":
        need_centerface()
    if job.gate:
        gate_judges(base_folder(job.base), job.gate)
    words = words_of(job, base.id)
    for given in job.sliders:
        if given in words:
            sliders[given] = words[given]
            continue
        newest = registry.resolve_on(_place(given), base, job.other_bases)
        slider = newest
        if given in pinned:
            slider = registry.resolve_on(pinned[given]["place"], base, job.other_bases)
        if slider.reference != newest.reference:
            console.print(
                f"{job.name}: goes on with {slider.reference}, as it began; {newest.reference} is "
                "newer, and another output would use it.",
                soft_wrap=True,
            )
        sliders[given] = slider
    names = Counter(slider.card.name for slider in sliders.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise SliderError(f"sliders: got {twice[0]} more than once; expected each slider once")
    for slider in sliders.values():
        if slider.card.elsewhere:
            advice = f"bs-ray sliders calibrate {slider.reference} --base {job.base}"
            console.print(f"{job.name}: {slider.card.elsewhere} ({advice})", soft_wrap=True)
    if not job.edits_column:
        _check_strengths(job, sliders, console)
    return sliders


def _check_strengths(job: EditJob, sliders: Mapping[str, Slider], console: Console) -> None:
    """Raise SliderError for a strength that is refused; print what users should know of others."""
    cards = {given: slider.card for given, slider in sliders.items()}
    for given, wanted in job.strengths.items():
        cards[given] = cards[given].model_copy(update={"elsewhere": ""})  # that has been printed
        for strength in wanted if isinstance(wanted, list) else [wanted]:
            for note in Mix.of({given: strength}, cards, job.editor.calibrated).notes:
                console.print(f"{job.name}: {note}", soft_wrap=True)


def words_of(job: EditJob, base_id: str) -> dict[str, Slider]:
    """The job's sliders of words, by its own names for them."""
    words = job.words.items()
    return {name: Slider.of_words(said, job.base, base_id, name) for name, said in words}


def _place(given: str) -> str:
    """A slider's file by its full path, for workers elsewhere; names stay as they are."""
    is_path = given.endswith(".safetensors") and "://" not in given
    return str(Path(given).absolute()) if is_path else given


_DECISIVE = {
    *("editor", "gate", "seed", "shard_images", "batch_size", "limit", "sample", "edits_column"),
    *("max_pixels", "max_bytes", "decode_s", "decode_mb", "sink"),
    *("input_format", "key_column", "image_column"),
}


def settings_of(
    job: EditJob, sliders: Mapping[str, Slider], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What decides an output's pixels and place, and so must not change between runs of a job.

    batch_size and shard_images belong to it: they decide which photos share a forward pass, and
    with that the last bits of its floats. Where and how fast a job runs does not. Settings have the
    names under which they are stored, which never change. before: those of the job's last run,
    which may have known the base by an id of earlier versions.
    """
    base = identify_base(job.base)
    begun_with = (before or {}).get("base_id", base.id)
    used = {
        given: {
            "place": _place(given) if "." in given else slider.reference,
            "reference": slider.reference,
            "sha256": digest(slider),
            "strength": job.strengths[given],
            **({"card": slider.card.to_json()} if given in job.words else {}),
        }
        for given, slider in sliders.items()
    }
    boxes = {"boxes_column"} if job.editor.region == "boxes" else set()
    return {
        **job.model_dump(mode="json", include=_DECISIVE | boxes, by_alias=True),
        "input": absolute_input(job.input),
        "base_id": begun_with if base.goes_by(begun_with) else base.id,
        "sliders": used,
        "bs_ray": __version__,
    }


def digest(slider: Slider) -> str:
    """sha256 of a slider's file."""
    return hashlib.sha256(slider.to_bytes()).hexdigest()
