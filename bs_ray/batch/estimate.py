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

from bs_ray.batch.edit import batches, edit_function, edit_rows
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.generations import last_whole
from bs_ray.batch.input_list import NEW, InputList, check_settings, counts_of, newest_input_list
from bs_ray.batch.ledger import done_shards
from bs_ray.batch.listing import Listing
from bs_ray.batch.prepare import described, listed, news, resolve, settings_of
from bs_ray.batch.rows import ImageRow, PlannedRow
from bs_ray.config import EditJob
from bs_ray.editing.editor import Editor
from bs_ray.images.rows import is_quarantined
from bs_ray.models import load_base
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
    source, output, registry = Store(job.input), Store(job.output), Registry(job.registry)
    source.check()
    found = newest_input_list(output)
    pinned = found.settings["sliders"] if found else {}
    sliders = resolve(job, registry, pinned, console)
    if found:
        check_settings(found.settings, settings_of(job, source, sliders), output)
    with tempfile.TemporaryDirectory() as folder:
        work = _work(job, source, output, found, Path(folder), console)
    references = {given: slider.reference for given, slider in sliders.items()}
    loaded, _, _ = load_photos(work.first, job, job.edits(references), references)
    rows = [row for row in loaded if not is_quarantined(row)]
    rate = _rate(job, list(sliders.values()), rows)
    left = max(0, work.to_edit - work.done_shards * job.shard_images)
    hours = left / rate / job.workers / 3600 if rate else 0.0 if not left else None
    return Estimate(
        photos=work.listing.photos,
        bytes=work.listing.bytes,
        format=work.listing.format,
        ignored=work.listing.ignored,
        edits=round(sum(len(row["edits"]) for row in rows) / max(1, len(rows))),
        generation=work.generation,
        changes=work.changes,
        shards=-(-work.to_edit // job.shard_images),
        done_shards=work.done_shards,
        images_per_s=rate,
        hours=hours,
        cost=hours * job.cost_per_hour if hours and job.cost_per_hour else None,
    )


@dataclass(frozen=True)
class _Work:
    """What a run would do."""

    listing: Listing | InputList
    generation: int
    changes: dict[str, int]
    to_edit: int
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
    if found is None:
        listing = listed(job, source, folder, console)
        changes = counts_of({NEW: listing.photos})
        return _Work(listing, 1, changes, listing.photos, 0, listing.head(count))
    generation = found.generation
    if generation > last_whole(output) or job.limit or job.sample:
        rows = chain.from_iterable(map(found.shard, range(found.shards)))
        done = len(done_shards(output, generation))
        first = list(islice(rows, count))
        return _Work(found, generation, found.changes, found.to_edit, done, first)
    now = news(job, found, folder, console)
    listing = replace(now.listing, path=now.to_edit)
    first = listing.head(count) if now.edits else []
    return _Work(listing, generation + now.any, dict(now.counts), now.edits, 0, first)


def estimate_table(found: Estimate) -> Table:
    """An Estimate for people."""
    table = Table(show_header=False, box=None)
    rows = {
        "photos": f"{found.photos:,} in {found.format} ({found.ignored:,} other files ignored)",
        "bytes": f"{found.bytes / 1e9:,.3g} GB",
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


def _rate(job: EditJob, sliders: Sequence[Slider], rows: list[PlannedRow]) -> float | None:
    """Photos a second through the editor alone, on this machine; None for no photos."""
    import torch

    torch.set_num_threads(max(1, round(job.cpus_per_worker)))
    model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
    editor = Editor(model, sliders, job.editor)
    edit = edit_function(editor, job)
    some = list(batches(rows, editor.working_size, job.batch_size))
    for batch in some[:1]:
        edit_rows(batch, editor, edit, job)
    timed = some[1 : 1 + _TIMED] or some
    started = time.monotonic()
    for batch in timed:
        edit_rows(batch, editor, edit, job)
    photos = sum(map(len, timed))
    return photos / (time.monotonic() - started) if photos else None
