"""`bs-ray edit`: a prefix of photos becomes a prefix of edited photos, by Ray Data.

    pending shards -> fetch, decode (tasks) -> edit (actors) -> encode, write, commit (tasks)

A row of the pipeline is a whole shard: a row is never split between blocks or batches, so a shard
is edited in the same batches on every run and its ledger line can be written in one place.
Resuming needs no state but the ledger: shards with a line are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bs_ray import __version__
from bs_ray.config import EditJob
from bs_ray.data import DecodedRow, EditedRow, QuarantinedRow, is_quarantined, quarantined
from bs_ray.data.contact import draw_pairs
from bs_ray.data.manifest import Manifest, open_manifest, read_manifest
from bs_ray.data.sinks import SUMMARY_KEY, done_shards, read_lines, write_reports
from bs_ray.data.stages import fetch_shard, pack, unpack, write_shard
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.editing.quality import GatedEditor, check_gate
from bs_ray.models import absolute_base, base_folder, identify_base, load_base
from bs_ray.models.judges import find_judges
from bs_ray.raysession import ray_session
from bs_ray.sliders.artifact import Slider, SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store

# Below this many photos a few bad ones say little about the rest.
_INPUTS_BEFORE_GUARD = 50
_LINES = 10  # of progress, on a console that is no terminal


class EditFailed(RuntimeError):
    """The job cannot go on; what is done is committed, and the message says what to do."""


@dataclass(frozen=True)
class EditSummary:
    """What is at the output, over all runs of the job; seconds and rate are this run's."""

    inputs: int
    outputs: int
    quarantined: int
    ignored: int
    """Files below the input prefix without an image suffix."""
    shards: int
    skipped_shards: int
    """Found done by an earlier run."""
    seconds: float
    images_per_s: float
    """Photos that this run took in, per second, start-up included."""
    nothing_to_do: bool
    """An earlier run had finished; this one wrote nothing."""
    quarantined_by_reason: dict[str, int] = field(default_factory=dict)


def edit(
    job: EditJob, *, console: Console | None = None, ray_address: str | None = None
) -> EditSummary:
    """Edit every photo below `job.input`; the same job on the same output resumes.

    Raises ValueError (StorageError, SliderError, BaseNotFound, EmptyInputError, JobChangedError)
    within seconds and before any work where the job cannot run, and EditFailed where it cannot go
    on. Either way inputs = outputs + quarantined, once it has finished.
    """
    started, console = time.monotonic(), console or Console()
    plan = _prepare(job, console)
    done = done_shards(plan.output)
    pending = sorted(set(range(plan.manifest.shards)) - done)
    if not pending and plan.output.exists(SUMMARY_KEY):
        summary = _summarise(plan, rows=0, skipped=len(done), started=started, finished=True)
        console.print(
            f"{job.name}: nothing to do, all {summary.inputs} photos are done.", soft_wrap=True
        )
        _guard(job, summary.inputs, summary.quarantined, finished=True)
        return summary
    plan.output.check(write=True)
    rows = 0
    if pending:
        needed = math.ceil(job.workers * job.cpus_per_worker) + 1
        with ray_session(num_cpus=needed, address=ray_address):
            rows = _run(plan, pending, sorted(done), console)
    write_reports(plan.output, plan.manifest)
    summary = _summarise(plan, rows=rows, skipped=len(done), started=started, finished=False)
    _tell(job, summary, console)
    _guard(job, summary.inputs, summary.quarantined, finished=True)
    return summary


def contact_sheet(job: EditJob, path: str | Path, pairs: int = 8) -> Path:
    """Write a PNG of `pairs` photos before and after, spread over the job's outputs.

    Raises EditFailed where the job has not finished.
    """
    output = Store(job.output)
    manifest = read_manifest(output)
    if manifest is None or not output.exists(SUMMARY_KEY):
        raise EditFailed(f"{job.output}: got no finished job; run `bs-ray edit` first")
    rows = _sound(read_lines(output, range(manifest.shards)))
    chosen = [rows[i * len(rows) // pairs] for i in range(min(pairs, len(rows)))]
    mix = ", ".join(f"{name} {strength:+g}" for name, strength in job.sliders.items())
    source, path = Store(job.input), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    triples = [(r["key"], source.read(r["key"]), output.read(r["output"])) for r in chosen]
    path.write_bytes(draw_pairs(triples, title=mix))
    return path


# ---------------------------------------------------------------------------- before any work


@dataclass(frozen=True)
class _Plan:
    """A job that has been checked: what to edit, with what."""

    job: EditJob
    """With absolute places: workers have working folders of their own."""
    output: Store
    manifest: Manifest

    @property
    def mix(self) -> dict[str, float]:
        """Slider name -> strength, what the Editor takes."""
        used = self.manifest.settings["sliders"].values()
        return {u["reference"].partition("@")[0]: u["strength"] for u in used}

    @property
    def copies(self) -> bool:
        """Whether every output is its input: no slider moves, and the method keeps the photo."""
        return self.job.editor.method == "displacement" and not any(self.mix.values())

    @property
    def stamp(self) -> dict[str, Any]:
        """What every output of the job says of its making."""
        settings = self.manifest.settings
        sliders = {u["reference"]: u["strength"] for u in settings["sliders"].values()}
        same = {name: settings[name] for name in ("base_id", "seed", "bs_ray")}
        return {**same, "sliders": sliders}


def _prepare(job: EditJob, console: Console) -> _Plan:
    """Check everything that can be checked without work; pin the input on the first run."""
    source, output, registry = Store(job.input), Store(job.output), Registry(job.registry)
    source.check()
    if job.gate:
        check_gate(find_judges(base_folder(job.base)), job.gate)
    before = read_manifest(output)
    pinned = before.settings["sliders"] if before else {}
    settings = _settings(job, source, _resolve(job, registry, pinned, console))
    if not before:
        output.check(write=True)
    manifest = open_manifest(source, output, settings, job.shard_images)
    places = {
        "input": source.uri,
        "output": output.uri,
        "registry": registry.store.uri,
        "base": absolute_base(job.base),
    }
    return _Plan(job.model_copy(update=places), output, manifest)


def _resolve(
    job: EditJob, registry: Registry, pinned: dict[str, dict[str, Any]], console: Console
) -> dict[str, Slider]:
    """Reference in the job -> slider. A job that has begun keeps its versions to the end."""
    base_id, sliders = identify_base(job.base), {}
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
        slider.card.scale_of(job.sliders[reference], job.editor.calibrated)
        if note := slider.card.beyond(job.sliders[reference], job.editor.calibrated):
            console.print(f"{job.name}: {note}", soft_wrap=True)
        sliders[reference] = slider
    names = Counter(slider.card.name for slider in sliders.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise SliderError(f"sliders: got {twice[0]} more than once; expected each slider once")
    return sliders


def _place(reference: str) -> str:
    """A slider's file by its full path, for workers elsewhere; names stay as they are."""
    is_path = reference.endswith(".safetensors") and "://" not in reference
    return str(Path(reference).absolute()) if is_path else reference


def _settings(job: EditJob, source: Store, sliders: dict[str, Slider]) -> dict[str, Any]:
    """What decides an output's pixels, and so must not change between runs of a job.

    batch_size and shard_images are part of it: they decide a photo's companions in a forward
    pass, and with them the last bits of its floats. Where and how fast a job runs is not.
    """
    used = {
        reference: {
            "place": _place(reference) if "." in reference else slider.reference,
            "reference": slider.reference,
            "sha256": _digest(slider),
            "strength": job.sliders[reference],
        }
        for reference, slider in sliders.items()
    }
    decisive = {"editor", "gate", "seed", "shard_images", "batch_size", "max_pixels", "max_bytes"}
    return {
        **job.model_dump(mode="json", include=decisive),
        "input": source.uri,
        "base_id": identify_base(job.base),
        "sliders": used,
        "bs_ray": __version__,
    }


def _digest(slider: Slider) -> str:
    return hashlib.sha256(slider.to_bytes()).hexdigest()


# ---------------------------------------------------------------------------- the pipeline


def _run(plan: _Plan, pending: list[int], done: list[int], console: Console) -> int:
    """Edit the pending shards; returns how many photos came through."""
    import ray

    rows = 0
    with _Board(console, plan, done) as board:
        try:
            for shard in _pipeline(plan, pending).iter_rows():
                rows += shard["inputs"]
                board.add(shard["inputs"], shard["quarantined"])
                _guard(plan.job, board.seen, board.quarantined)
        except (ray.exceptions.RayError, SystemError) as error:
            raise EditFailed(
                f"{plan.job.name}: stopped by {_cause(error)}. The shards that are done are "
                "committed: run the same command again to go on"
            ) from error
    return rows


def _pipeline(plan: _Plan, pending: list[int]) -> Any:
    """The Dataset of one small row per committed shard: shard, inputs, quarantined."""
    import ray

    job = plan.job
    # Enough to keep the editors fed, no more: each holds a decoded shard. The size also keeps Ray
    # from fusing the stage into the editors, which would then wait for their own decoding.
    fetchers = min(2 * job.workers, len(pending))
    editors = ray.data.ActorPoolStrategy(min_size=1, max_size=job.workers, initial_size=job.workers)
    # One block per shard: a task then takes one shard, and a crash costs no more.
    shards = ray.data.range(len(pending), override_num_blocks=len(pending), concurrency=fetchers)
    shards.context.enable_progress_bars = False
    shards.context.raise_original_map_exception = True  # ours say what to do
    photos = shards.map(
        fetch_shard,
        fn_kwargs={"job": job, "copies": plan.copies, "pending": pending},
        compute=ray.data.TaskPoolStrategy(fetchers),
    )
    if not plan.copies:
        photos = photos.map(
            EditShard,
            fn_constructor_kwargs={"job": job, "settings": plan.manifest.settings},
            fn_kwargs={"mix": plan.mix},
            compute=editors,
            num_cpus=job.cpus_per_worker,
            num_gpus=job.gpus_per_worker or None,
        )
    return photos.map(write_shard, fn_kwargs={"job": job, "stamp": plan.stamp})


AnyEditor = Editor | GatedEditor


class EditShard:
    """{shard, rows} -> {shard, rows}: the actor that holds the base and the sliders."""

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        """settings: the job's manifest's. Raises SliderError where a slider has changed since."""
        import torch

        torch.set_num_threads(max(1, round(job.cpus_per_worker)))
        registry, sliders = Registry(job.registry), []
        for used in settings["sliders"].values():
            sliders.append(registry.resolve(used["place"]))
            if _digest(sliders[-1]) != used["sha256"]:
                raise SliderError(f"slider {used['place']}: got other weights than at the start")
        model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
        editor = Editor(model, sliders, job.editor)
        self.job, self.editor = job, gated(editor, job)

    def __call__(self, row: dict[str, Any], *, mix: dict[str, float]) -> dict[str, Any]:
        return pack(row["shard"], edit_rows(unpack(row), self.editor, mix, self.job))


def gated(editor: Editor, job: EditJob) -> AnyEditor:
    """The editor behind the job's quality gate, if it has one."""
    if not job.gate:
        return editor
    return GatedEditor(editor, find_judges(base_folder(job.base)), job.gate)


def edit_rows(
    rows: Sequence[DecodedRow | QuarantinedRow],
    editor: AnyEditor,
    mix: dict[str, float],
    job: EditJob,
) -> list[EditedRow | QuarantinedRow]:
    """Edit a shard's photos, in fixed batches; order is kept, the quarantined pass through.

    Where a batch fails its photos are tried one by one, and those that fail are quarantined.
    """
    photos = _sound(rows)
    edited: dict[str, EditedRow | QuarantinedRow] = {}
    for start in range(0, len(photos), job.batch_size):
        batch = photos[start : start + job.batch_size]
        try:
            results: Iterator[Any] = iter(_edit_batch(batch, editor, mix, job.seed))
        except Exception:  # one photo of it, or their sum: the next try tells
            results = (_edit_alone(row, editor, mix, job.seed) for row in batch)
        edited |= {row["key"]: row for row in results}
    return [edited.get(row["key"], row) for row in rows]


def _sound(rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if not is_quarantined(row)]


def _edit_batch(
    batch: Sequence[DecodedRow], editor: AnyEditor, mix: dict[str, float], seed: int
) -> list[EditedRow]:
    edits = [Edit(row["sha256"], row["pixels"], [mix], seed) for row in batch]
    edited = [output for outcome in editor.edit(edits) for output in outputs_of(outcome)]
    if not all(np.isfinite(output.pixels).all() for output in edited):
        raise ArithmeticError("got pixels that are not finite")
    return [
        EditedRow(
            **{
                **row,
                "pixels": to_uint8(output.pixels),
                "note": "; ".join(filter(None, [row["note"], *output.notes])),
            }
        )
        for row, output in zip(batch, edited, strict=True)
    ]


def _edit_alone(
    row: DecodedRow, editor: AnyEditor, mix: dict[str, float], seed: int
) -> EditedRow | QuarantinedRow:
    try:
        return _edit_batch([row], editor, mix, seed)[0]
    except Exception as error:
        return quarantined(row["key"], "edit", f"failed: {type(error).__name__}: {error}"[:300])


# ---------------------------------------------------------------------------- telling


class _Board:
    """The progress bar: photos done and quarantined, rate, time left."""

    def __init__(self, console: Console, plan: _Plan, done: list[int]):
        before = read_lines(plan.output, done)
        self.seen = len(before)
        self.quarantined = sum(map(is_quarantined, before))
        self.fresh, self.started, self.tenth = 0, time.monotonic(), 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.total = len(plan.manifest.keys)
        self.task = self.bar.add_task(
            plan.job.name, total=self.total, completed=self.seen, note="starting"
        )

    def __enter__(self) -> _Board:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar.console.is_terminal:
            self.bar.stop()

    def add(self, inputs: int, bad: int) -> None:
        """Another shard is committed."""
        self.seen, self.fresh = self.seen + inputs, self.fresh + inputs
        self.quarantined += bad
        rate = self.fresh / (time.monotonic() - self.started)
        note = f"{self.quarantined} quarantined, {rate:.1f} images/s"
        self.bar.update(self.task, completed=self.seen, note=note)
        tenth = _LINES * self.seen // self.total
        if not self.bar.console.is_terminal and tenth != self.tenth:
            self.tenth = tenth
            self.bar.console.print(f"{self.seen} of {self.total}, {note}", soft_wrap=True)


def _guard(job: EditJob, inputs: int, bad: int, finished: bool = False) -> None:
    """Raise EditFailed once too many photos were quarantined to call this a success."""
    enough = finished or inputs >= _INPUTS_BEFORE_GUARD
    if enough and bad > job.max_quarantined_share * inputs:
        where = "quarantine.jsonl" if finished else "the lines in _bs_ray/shards"
        raise EditFailed(
            f"{job.name}: got {bad} of {inputs} photos quarantined; expected at most "
            f"{job.max_quarantined_share:.0%} (max_quarantined_share). See {where} below "
            f"{job.output}; allow more and run again to go on"
        )


def _summarise(
    plan: _Plan, *, rows: int, skipped: int, started: float, finished: bool
) -> EditSummary:
    found = json.loads(plan.output.read(SUMMARY_KEY))
    seconds = time.monotonic() - started
    return EditSummary(
        inputs=found["inputs"],
        outputs=found["outputs"],
        quarantined=found["quarantined"],
        ignored=found["ignored"],
        shards=found["shards"],
        skipped_shards=skipped,
        seconds=seconds,
        images_per_s=rows / seconds,
        nothing_to_do=finished,
        quarantined_by_reason=found["quarantined_by_reason"],
    )


def _tell(job: EditJob, summary: EditSummary, console: Console) -> None:
    console.print(
        f"{job.name}: {summary.inputs} photos = {summary.outputs} edited + {summary.quarantined} "
        f"quarantined, in {summary.seconds:.1f} s; {summary.ignored} other files ignored.",
        soft_wrap=True,
    )
    for reason, count in summary.quarantined_by_reason.items():
        console.print(f"  quarantined in {reason}: {count}", highlight=False)


def _cause(error: BaseException) -> str:
    """What went wrong in a stage, on one line; Ray wraps it in pages of traceback."""
    import ray

    while isinstance(error, ray.exceptions.RayError | SystemError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"
