"""What a job would take, without running it: `bs-ray edit JOB.yaml --plan`. Nothing is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bs_ray.batch.edit import batches, edit_function, edit_rows
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.input_list import read_input_list
from bs_ray.batch.ledger import done_shards
from bs_ray.batch.prepare import listed, resolve
from bs_ray.batch.rows import PlannedRow
from bs_ray.batch.survey import place_of_input
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
    shards: int
    done_shards: int
    """Those that an earlier run has done."""
    images_per_s: float | None
    """Photos a second of one worker on this machine; None where no photo could be edited."""
    hours: float | None
    """For what is not yet done, by the job's workers, if each is as fast as this machine."""
    cost: float | None


def estimate(job: EditJob, console: Console) -> Estimate:
    """List the input, and edit a few of its photos in this process to see how long it takes.

    Raises ValueError as `edit` does before any work.
    """
    source, _ = place_of_input(job.input)
    output, registry = Store(job.output), Registry(job.registry)
    source.check()
    sliders = resolve(job, registry, {}, console)
    with tempfile.TemporaryDirectory() as folder:
        listing = listed(job, source, Path(folder), console)
        tried = listing.head((_TIMED + 1) * job.batch_size)
    done = len(done_shards(output)) if read_input_list(output) else 0
    references = {given: slider.reference for given, slider in sliders.items()}
    loaded, _, _ = load_photos(tried, job, job.edits(references), references)
    rows = [row for row in loaded if not is_quarantined(row)]
    rate = _rate(job, list(sliders.values()), rows)
    left = max(0, listing.photos - done * job.shard_images)
    hours = left / rate / job.workers / 3600 if rate else None
    return Estimate(
        photos=listing.photos,
        bytes=listing.bytes,
        format=listing.format,
        ignored=listing.ignored,
        edits=round(sum(len(row["edits"]) for row in rows) / max(1, len(rows))),
        shards=-(-listing.photos // job.shard_images),
        done_shards=done,
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


def estimate_table(found: Estimate) -> Table:
    """An Estimate for people."""
    table = Table(show_header=False, box=None)
    rows = {
        "photos": f"{found.photos:,} in {found.format} ({found.ignored:,} other files ignored)",
        "bytes": size_of(found.bytes),
        "edits of each": str(found.edits),
        "shards": f"{found.shards:,}, {found.done_shards:,} of them done",
        "rate": "unknown: none of the photos tried could be edited",
        "time left": "unknown",
    }
    if found.images_per_s and found.hours is not None:
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
