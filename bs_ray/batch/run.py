"""`bs-ray edit` from its start to its end: prepare, resume, run, verify, reconcile."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from bs_ray.batch.accounts import write_reports
from bs_ray.batch.board import Board, Metrics
from bs_ray.batch.generations import (
    SUMMARY_KEY,
    is_published,
    last_whole,
    publish,
    report_key,
    work_folder,
)
from bs_ray.batch.lease import Lease
from bs_ray.batch.ledger import done_shards, reopen
from bs_ray.batch.pipeline import pipeline
from bs_ray.batch.prepare import (
    EditFailed,
    PreparedJob,
    described,
    prepare,
    renewed,
    report_to,
)
from bs_ray.batch.report import LATEST_KEY, REPORT_KEY, sheet, write_report
from bs_ray.batch.verify import lost_shards
from bs_ray.config import EditJob
from bs_ray.progress import counted
from bs_ray.ray_session import ray_session

# Among fewer photos than this, a few bad ones say little about the rest.
_MIN_INPUTS = 50


@dataclass(frozen=True)
class EditSummary:
    """What is at the output, from all runs of the job; seconds and rates are this run's alone."""

    inputs: int
    """Photos: edited + quarantined."""
    edited: int
    quarantined: int
    outputs: int
    """Files: as many as edited photos, times the edits of each."""
    ignored: int
    """Files below the input prefix that hold no photos."""
    shards: int
    """Those of the last generation."""
    skipped_shards: int
    """Those of them that an earlier run had done."""
    seconds: float
    images_per_s: float
    """Photos a second that this run took in, its start-up included."""
    steady_images_per_s: float
    """The same, counted from when the first photo was edited: without starting Ray and the
    model."""
    nothing_to_do: bool
    """Whether the input has no news and an earlier run had finished: this one wrote nothing."""
    quarantined_by_reason: dict[str, int] = field(default_factory=dict)
    generation: int = 1
    changes: dict[str, int] = field(default_factory=dict)
    """How many photos were new, changed, lost, gone and unchanged in the last generation."""
    made: dict[str, int] = field(default_factory=dict)
    """What the last generation itself took in and made: inputs, edited, quarantined, outputs and
    their bytes."""


def edit(
    job: EditJob,
    *,
    console: Console | None = None,
    metrics_port: int | None = None,
) -> EditSummary:
    """Edit every photo below `job.input` that is new or changed; on the same output it resumes.

    A generation that an earlier run has begun is finished first. metrics_port: where Prometheus
    metrics are served while the job runs; None serves none.

    Raises ValueError (StorageError, SliderError, BaseNotFound, EmptyInputError, JobChangedError)
    within seconds and before any work where the job cannot run, JobTakenError where another driver
    is at work on it, and EditFailed where it cannot go on. Once it has finished, inputs = edited +
    quarantined.
    """
    console = console or Console()
    prepared = prepare(job, console)
    if not prepared.listed and last_whole(prepared.output) < prepared.input_list.generation:
        resumed = _edit_generation(prepared, console, metrics_port)
        prepared = renewed(prepared, console)
        if prepared.input_list.generation == resumed.generation:
            return resumed
    elif not prepared.listed:
        prepared = renewed(prepared, console)
    return _edit_generation(prepared, console, metrics_port)


def _edit_generation(
    prepared: PreparedJob, console: Console, metrics_port: int | None
) -> EditSummary:
    """Make a generation whole, or find that it is."""
    started, job, input_list = time.monotonic(), prepared.job, prepared.input_list
    output, generation = prepared.output, input_list.generation
    done = done_shards(output, generation)
    if is_published(output, generation) and output.exists(REPORT_KEY):
        summary = _summarise(prepared, None, skipped=len(done), started=started)
        console.print(
            f"{job.name}: nothing to do, all {summary.inputs} photos are done.", soft_wrap=True
        )
        _stop_if_too_bad(job, summary.made, generation, finished=True)
        return summary
    output.check(write=True)
    with Lease(output, report_to(console, job)) as lease:
        run, done = _Run(), done_shards(output, generation)  # by the driver before, until just now
        if last_whole(output) < generation:
            pending = sorted(set(range(input_list.shards)) - done)
            run = _run(prepared, pending, sorted(done), console, lease, metrics_port)
            _look_for_lost(prepared)
            write_reports(input_list)
        publish(output)
    if last_whole(output) == generation:
        write_report(job, input_list)
    summary = _summarise(prepared, run, skipped=len(done), started=started)
    _print_summary(job, summary, console)
    _stop_if_too_bad(job, summary.made, generation, finished=True)
    return summary


@dataclass
class _Run:
    """How this run went."""

    photos: int = 0
    began: float = math.inf
    ended: float = 0.0

    def add(self, shard: dict[str, Any]) -> None:
        self.photos += shard["inputs"]
        self.began = min(self.began, shard["edit_at_s"])
        self.ended = time.time()

    @property
    def steady_rate(self) -> float:
        return self.photos / (self.ended - self.began) if self.photos else 0.0


def _run(
    prepared: PreparedJob,
    pending: list[int],
    done: list[int],
    console: Console,
    lease: Lease,
    metrics_port: int | None,
) -> _Run:
    """Edit the pending shards."""
    run, job = _Run(), prepared.job
    if not pending:
        return run
    metrics = Metrics(metrics_port)
    needed = math.ceil(job.workers * job.cpus_per_worker) + 1
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    try:
        with (
            ray_session(num_cpus=needed),
            Board(console, prepared, done, metrics, lambda s: _draw_latest(prepared, s)) as board,
        ):
            try:
                _follow(prepared, pending, board, lease, run)
            finally:
                lease.record = {
                    "started": started,
                    "generation": prepared.input_list.generation,
                    "photos": board.fresh,
                    "seconds": board.seconds,
                    "busy": board.busy,
                    "workers": job.workers,
                }
    finally:
        metrics.close()
    return run


def _follow(
    prepared: PreparedJob, pending: list[int], board: Board, lease: Lease, run: _Run
) -> None:
    """Run the pipeline to its end, and show every shard on the board."""
    import ray

    job = prepared.job
    try:
        for shard in pipeline(prepared, pending).iter_rows():
            run.add(shard)
            board.add(shard)
            so_far = {"inputs": board.seen, "quarantined": board.quarantined}
            _stop_if_too_bad(job, so_far, prepared.input_list.generation)
            if lease.superseded:
                raise EditFailed(
                    f"{job.name}: stopped, because another driver has taken the job over: this one "
                    "was silent for too long"
                )
    except (ray.exceptions.RayError, SystemError) as error:
        raise EditFailed(
            f"{job.name}: stopped by {_cause(error)}. The shards that are done are "
            f"committed: {_advice(_cause(error))}"
        ) from error


def _look_for_lost(prepared: PreparedJob) -> None:
    """Raise EditFailed where the store has lost outputs; their shards are then open again."""
    input_list = prepared.input_list
    if lost := lost_shards(prepared.output, input_list.shards, input_list.generation):
        reopen(prepared.output, lost, input_list.generation)
        raise EditFailed(
            f"{prepared.job.name}: got {len(lost)} shards with outputs that are no longer in "
            f"{prepared.job.output}, such as shard {lost[0]}; expected all that the store had "
            "acknowledged. Look at its disk and its expiry rules; run the same command again to "
            "make these shards again"
        )


def _draw_latest(prepared: PreparedJob, shards: list[int]) -> None:
    prepared.output.write(LATEST_KEY, sheet(prepared.job, prepared.input_list, shards))


def _stop_if_too_bad(
    job: EditJob, counts: Mapping[str, int], generation: int, finished: bool = False
) -> None:
    """Raise EditFailed once more photos are quarantined than the job allows.

    counts: inputs and quarantined, of one generation.
    """
    inputs, bad = counts["inputs"], counts["quarantined"]
    # A day on which two photos come, both of them bad, is no reason to stop.
    enough = inputs >= _MIN_INPUTS or (finished and generation == 1)
    if enough and bad > job.max_quarantined_share * inputs:
        where = "quarantine.jsonl" if finished else f"the lines in {work_folder(generation)}/shards"
        raise EditFailed(
            f"{job.name}: got {bad} of {inputs} photos quarantined; expected at most "
            f"{job.max_quarantined_share:.0%} (max_quarantined_share). See {where} below "
            f"{job.output}; allow more and run again to go on"
        )


def _summarise(
    prepared: PreparedJob, run: _Run | None, *, skipped: int, started: float
) -> EditSummary:
    """run: None where an earlier run had finished the job."""
    generation = prepared.input_list.generation
    found = json.loads(prepared.output.read(report_key(generation, SUMMARY_KEY)))
    seconds = time.monotonic() - started
    return EditSummary(
        inputs=found["inputs"],
        edited=found["edited"],
        quarantined=found["quarantined"],
        outputs=found["outputs"],
        ignored=found["ignored"],
        shards=found["shards"],
        skipped_shards=skipped,
        seconds=seconds,
        images_per_s=run.photos / seconds if run else 0.0,
        steady_images_per_s=run.steady_rate if run else 0.0,
        nothing_to_do=run is None,
        quarantined_by_reason=found["quarantined_by_reason"],
        generation=generation,
        changes=prepared.input_list.changes,
        made=found["made"],
    )


def _print_summary(job: EditJob, summary: EditSummary, console: Console) -> None:
    edits = f" ({counted(summary.outputs, 'edit')})" if summary.outputs != summary.edited else ""
    ignored = f"; {counted(summary.ignored, 'other file')} ignored" if summary.ignored else ""
    console.print(
        f"{job.name}: {counted(summary.inputs, 'photo')} = {summary.edited} edited{edits} + "
        f"{summary.quarantined} quarantined, in {summary.seconds:.1f} s{ignored}. "
        f"Report: {job.output}/report.html",
        soft_wrap=True,
    )
    if summary.generation > 1:
        console.print(
            f"  generation {summary.generation}: {described(summary.changes)}; "
            f"{summary.made['outputs']} outputs, {summary.made['bytes'] / 1e6:.1f} MB written",
            highlight=False,
        )
    for reason, count in summary.quarantined_by_reason.items():
        console.print(f"  quarantined in {reason}: {count}", highlight=False)


_FAULTS = ("TypeError", "AttributeError", "KeyError", "IndexError", "NameError", "AssertionError")


def _advice(cause: str) -> str:
    """What to do about a stage that stopped: a fault of the code stays one."""
    if cause.startswith(_FAULTS):
        return "the same command would stop there again. This is a fault of bs_ray; report it"
    return "run the same command again to go on"


def _cause(error: BaseException) -> str:
    """What went wrong in a stage, on one line; Ray wraps the exception in pages of traceback."""
    import ray

    while isinstance(error, ray.exceptions.RayError | SystemError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"
