"""What a job would take, without running it: `bs-ray edit JOB.yaml --plan`. Nothing is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bs_ray.batch.cutting import count_shards
from bs_ray.batch.edit import edit_function, edit_rows, of_views
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.generations import last_whole
from bs_ray.batch.input_list import NEW, InputList, check_settings, counts_of, newest_input_list
from bs_ray.batch.ledger import done_shards
from bs_ray.batch.listing import Listing
from bs_ray.batch.pipeline import fetchers
from bs_ray.batch.prepare import described, listed, news, resolve, settings_of, sight_of
from bs_ray.batch.rows import ImageRow, PlannedRow
from bs_ray.batch.survey import place_of_input
from bs_ray.batch.write import encode_all
from bs_ray.config import EditJob
from bs_ray.editing.editor import Editor
from bs_ray.images.rows import is_quarantined
from bs_ray.models import load_base
from bs_ray.progress import counted
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store

_TIMED = 2  # batches, after a first one that warms up


@dataclass(frozen=True)
class Estimate:
    """What `--plan` says."""

    photos: int
    bytes: int
    """Of the files that hold them."""
    format: str
    ignored: int
    edits: int
    """Of a photo, on average over those that were tried."""
    generation: int
    """The one that a run would make, or go on with; the last one where there is nothing to do."""
    changes: dict[str, int]
    """How many photos are new, changed, lost, gone and unchanged since the generation before."""
    shards: int
    """Of that generation."""
    done_shards: int
    """Those that an earlier run has done."""
    images_per_s: float | None
    """Photos a second of one worker on this machine; None where no photo could be edited."""
    hours: float | None
    """For what is not yet done, by the job's workers, if each is as fast as this machine."""
    cost: float | None


def estimate(job: EditJob, console: Console) -> Estimate:
    """See what a run would do, and edit a few of its photos in this process to see how long it
    takes.

    Raises ValueError as `edit` does before any work.
    """
    source, _ = place_of_input(job.input)
    output, registry = Store(job.output), Registry(job.registry)
    source.check()
    found = newest_input_list(output)
    pinned = found.settings["sliders"] if found else {}
    sliders = resolve(job, registry, pinned, console)
    if found:
        check_settings(found.settings, settings_of(job, sliders, found.settings), output)
    with tempfile.TemporaryDirectory() as folder:
        work = _work(job, source, output, found, Path(folder), console)
    references = {given: slider.reference for given, slider in sliders.items()}
    loaded, files, *seconds = load_photos(
        work.first, job, job.edits(references), references, sight_of(job)
    )
    rows = [row for row in loaded if not is_quarantined(row)]
    at_once = fetchers(job, work.shards) / job.workers
    rate = _rate(job, list(sliders.values()), rows, files, sum(seconds), at_once)
    hours = work.left / rate / job.workers / 3600 if rate else 0.0 if not work.left else None
    return Estimate(
        photos=work.listing.photos,
        bytes=work.listing.bytes,
        format=work.listing.format,
        ignored=work.listing.ignored,
        edits=round(sum(len(row["edits"]) for row in rows) / max(1, len(rows))),
        generation=work.generation,
        changes=work.changes,
        shards=work.shards,
        done_shards=work.done_shards,
        images_per_s=rate,
        hours=hours,
        cost=hours * job.cost_per_hour if hours and job.cost_per_hour else None,
    )


def size_of(count: int) -> str:
    """Bytes in the unit that leaves one to three digits in front of the point."""
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:,.3g} {units[0]}"


@dataclass(frozen=True)
class _Work:
    """What a run would do."""

    listing: Listing | InputList
    generation: int
    changes: dict[str, int]
    left: int
    """Photos that are still to be edited."""
    shards: int
    done_shards: int
    first: list[ImageRow]
    """A few of the photos to edit."""


def _work(
    job: EditJob,
    source: Store,
    output: Store,
    found: InputList | None,
    folder: Path,
    console: Console,
) -> _Work:
    """As `prepare` and `renewed` would find it; writes into `folder` alone.

    found: the output's newest input list.
    """
    count = (_TIMED + 1) * job.batch_size
    bounds = job.shard_images, job.shard_mb << 20
    if found is None:
        listing = listed(job, source, folder, console)
        changes = counts_of({NEW: listing.photos})
        shards = count_shards(listing.path, *bounds)
        return _Work(listing, 1, changes, listing.photos, shards, 0, listing.head(count))
    generation = found.generation
    if generation > last_whole(output) or job.limit or job.sample:
        rows = chain.from_iterable(map(found.shard, range(found.shards)))
        done, first = done_shards(output, generation), list(islice(rows, count))
        left = found.to_edit - found.photos_of(done)
        return _Work(found, generation, found.changes, left, found.shards, len(done), first)
    now = news(job, found, folder, console)
    listing = replace(now.listing, path=now.to_edit)
    first = listing.head(count) if now.edits else []
    generation, shards = generation + now.any, count_shards(now.to_edit, *bounds)
    return _Work(listing, generation, dict(now.counts), now.edits, shards, 0, first)


def estimate_table(found: Estimate) -> Table:
    """An Estimate for people."""
    table = Table(show_header=False, box=None)
    ignored = f" ({counted(found.ignored, 'other file')} ignored)" if found.ignored else ""
    rows = {
        "photos": f"{found.photos:,} in {found.format}{ignored}",
        "bytes": size_of(found.bytes),
        "generation": f"{found.generation}: {described(found.changes)}",
        "edits of each": str(found.edits),
        "shards": f"{found.shards:,}, {found.done_shards:,} of them done",
        "rate": "unknown: none of the photos tried could be edited",
        "time left": "unknown",
    }
    if found.hours == 0:
        rows |= {"rate": "not measured", "time left": "nothing to edit"}
    elif found.images_per_s and found.hours is not None:
        rows["rate"] = f"{found.images_per_s:.2f} images/s a worker, measured on this machine"
        rows["time left"] = f"{found.hours:.2f} hours"
    if found.cost is not None:
        rows["cost"] = f"{found.cost:,.2f}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _rate(
    job: EditJob,
    sliders: Sequence[Slider],
    rows: list[PlannedRow],
    files: dict[str, bytes],
    load_s: float,
    at_once: float,
) -> float | None:
    """Photos a second through the slowest stage, on this machine; None for no photos.

    load_s: what it took to load them; at_once: tasks that load, and that write, beside each editor.
    """
    import torch

    torch.set_num_threads(max(1, round(job.cpus_per_worker)))
    model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
    editor = Editor(model, sliders, of_views(job.editor))
    edit = edit_function(editor, job)
    some = [rows[i : i + job.batch_size] for i in range(0, len(rows), job.batch_size)]
    for photos in some[:1]:
        edit_rows(photos, editor, edit, job)
    timed = [photo for photos in some[1 : 1 + _TIMED] or some for photo in photos]
    if not timed:
        return None
    started = time.monotonic()
    edited = edit_rows(timed, editor, edit, job)
    written = time.monotonic()
    encode_all(edited, files, job, {})
    seconds = [
        (written - started) / len(timed),
        (time.monotonic() - written) / len(timed) / at_once,
        load_s / len(rows) / at_once,
    ]
    return 1 / max(seconds)
