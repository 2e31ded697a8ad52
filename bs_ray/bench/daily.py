"""A thousand photos, and the day after: what a new generation does, writes and takes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bs_ray.batch.sinks import read_output
from bs_ray.config import EditJob
from bs_ray.models import load_base
from bs_ray.ray_session import WORKER_ENV
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore
from bs_ray.testing import random_slider
from bs_ray.tiny.drawn import write_wild

Report = Callable[[str], None]
NEW, CHANGED, GONE = 50, 10, 5
_BUCKET = "bs-ray-bench"
_READ = 10  # outputs that a reader checks of every manifest
_PAUSE_S = 0.5  # of the reader, which shares the cores
_OF_A_RUN = ("report.html", "_bs_ray/drivers/", "_bs_ray/latest.png")
"""Of no two runs the same."""


def bench_daily(photos: int, report: Report) -> dict[str, Any]:
    """Edit `photos` photos; then 50 are new, 10 changed, 5 gone, once undisturbed and once killed.

    While the killed run and the one that resumes it are at work, a reader follows summary.json.
    """
    with tempfile.TemporaryDirectory() as scratch, LocalObjectStore() as store:
        os.environ.update(store.env)
        store.make_bucket(_BUCKET)
        root = Store(f"s3://{_BUCKET}")
        Registry(f"{scratch}/sliders").publish(random_slider(load_base("tiny"), "smile", 0))
        write_wild(root.join("all"), photos=photos + NEW + CHANGED, broken=photos // 100, seed=0)
        keys = [entry.key for entry in root.join("all").list()]
        for key in keys[:photos]:
            root.join("in").write(key, root.join("all").read(key))
        job = EditJob(
            name="daily",
            input=root.join("in").uri,
            output=root.join("out").uri,
            registry=f"{scratch}/sliders",
            sliders={"smile": 1.0},
            shard_images=16,
            workers=2,
        )
        figures = {"first": _run(job, report)}
        plain = job.model_copy(update={"output": root.join("undisturbed").uri})
        for entry in root.join("out").list():
            root.join("undisturbed").write(entry.key, root.join("out").read(entry.key))
        _next_day(root, keys, photos)
        figures["second"] = _run(plain, report)
        figures["nothing_new"] = _run(plain, report)
        with _reader(root.join("out")) as seen:
            figures["killed_after_s"] = _kill_midway(job, report)
            figures["resumed"] = _run(job, report)
            time.sleep(1.0)
        figures["reads"], figures["generations_seen"] = len(seen), sorted(set(seen))
        figures["same_bytes"] = _files(root.join("out")) == _files(root.join("undisturbed"))
    return figures


def _next_day(root: Store, keys: list[str], photos: int) -> None:
    source, every = root.join("in"), root.join("all")
    for key in keys[photos : photos + NEW]:
        source.write(key, every.read(key))
    for key, other in zip(keys[:CHANGED], keys[photos + NEW :], strict=True):
        source.write(key, every.read(other))
    for key in keys[CHANGED : CHANGED + GONE]:
        source.delete(key)


def _run(job: EditJob, report: Report) -> dict[str, Any]:
    """A whole `bs-ray edit`: what it says, its seconds, and what it left in the store."""
    output = Store(job.output)
    before = {entry.key: entry.etag for entry in output.list()}
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        process = _start(job, scratch)
        if process.wait():
            raise RuntimeError(f"bs-ray edit: got exit status {process.returncode}; expected 0")
        seconds = time.perf_counter() - started
        done = json.loads(Path(scratch, "done.json").read_text())
    written = [entry for entry in output.list() if before.get(entry.key) != entry.etag]
    sizes = Counter[str]()
    for entry in written:
        sizes[_kind(entry.key)] += entry.size
    figures = {
        "seconds": seconds,
        **{name: done[name] for name in ("generation", "inputs", "edited", "quarantined")},
        "changes": done["changes"],
        "made": done["made"],
        "objects_written": len(written),
        "bytes_written": dict(sizes),
        "photos_rewritten": sum(e.key in before and _kind(e.key) == "photos" for e in written),
    }
    report(json.dumps(figures))
    return figures


def _kind(key: str) -> str:
    if key.startswith("images"):
        return "photos"
    if "/shards/" in key:
        return "ledger"
    return "pages" if key.startswith(_OF_A_RUN) else "lists and reports"


def _start(job: EditJob, scratch: str) -> subprocess.Popen[bytes]:
    Path(scratch, "job.json").write_text(job.model_dump_json())  # JSON is YAML
    words = ["edit", f"{scratch}/job.json", "--json", f"{scratch}/done.json"]
    return subprocess.Popen(
        [sys.executable, "-m", "bs_ray", *words],
        env=os.environ | WORKER_ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _kill_midway(job: EditJob, report: Report) -> float:
    """SIGKILL to the command and its Ray once a shard of the new generation is there."""
    output, started = Store(job.output), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        process = _start(job, scratch)
        while not output.list("_bs_ray/0002/shards/"):
            if process.poll() is not None:
                raise RuntimeError("bs-ray edit: ended before it could be killed")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = time.perf_counter() - started
    report(f"killed after {seconds:.1f} s, {len(output.list('_bs_ray/0002/shards/'))} shards done")
    return seconds


@contextmanager
def _reader(output: Store) -> Iterator[list[int]]:
    """In a thread: follow summary.json again and again; yields the generations seen.

    Raises what the thread raised: RuntimeError where it saw a part.
    """
    seen: list[int] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set() and not failures:
            try:
                seen.append(_read(output))
            except Exception as error:
                failures.append(error)
            stop.wait(_PAUSE_S)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def _read(output: Store) -> int:
    summary = json.loads(output.read("summary.json"))
    rows = pq.read_table(BytesIO(output.read(summary["manifest"]))).to_pylist()
    refused = output.read(summary["quarantine"]).splitlines()
    counts = [len(rows), len(refused), len(rows) + len(refused)]
    if counts != [summary[name] for name in ("edited", "quarantined", "inputs")]:
        raise RuntimeError(f"a reader saw {counts} of {summary}")
    for row in random.sample(rows, _READ):
        if hashlib.sha256(read_output(output, row["output"])).hexdigest() != row["output_sha256"]:
            raise RuntimeError(f"a reader saw other bytes than the manifest's: {row}")
    return summary["generation"]


def _files(store: Store) -> dict[str, str]:
    """Key -> etag, the MD5, of all that is a function of the job."""
    return {e.key: e.etag for e in store.list() if not e.key.startswith(_OF_A_RUN)}
