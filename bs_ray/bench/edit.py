"""The batch pipeline against the bare editor, a slow model and a plain loop; and how it grows."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bs_ray.batch.edit import copied, edit_rows
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.pipeline import pipeline
from bs_ray.batch.prepare import prepare
from bs_ray.batch.rows import PlannedRow, pack, seconds_of, unpack
from bs_ray.batch.run import edit
from bs_ray.bench.plain import plain_loop
from bs_ray.config import EditJob
from bs_ray.editing.editor import Editor
from bs_ray.images.rows import is_quarantined
from bs_ray.models import base_folder, load_base
from bs_ray.ray_session import WORKER_ENV, ray_session
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore
from bs_ray.testing import random_slider
from bs_ray.tiny.drawn import write_wild

Report = Callable[[str], None]
SLOW_S = 0.25
"""Seconds that the slow model takes for a photo; SDXL on a fast GPU takes longer."""
_BUCKET = "bs-ray-bench"


def bench_edit(photos: int, repeats: int, large: Sequence[int], report: Report) -> dict[str, Any]:
    """Everything that `bs-ray bench edit` measures, each ratio side by side in one run.

    photos: of a run of the pipeline. large: numbers of photos between which memory, and time a
    photo, should not grow. Rates count from the first photo's edit to the last shard's commit.
    """
    with tempfile.TemporaryDirectory() as scratch, LocalObjectStore() as store:
        os.environ.update(store.env)
        store.make_bucket(_BUCKET)
        root = Store(f"s3://{_BUCKET}")
        slider = random_slider(load_base("tiny"), "smile", 0)
        Registry(f"{scratch}/sliders").publish(slider)
        write_wild(root.join("in"), photos=photos, broken=0, seed=0)
        job = _job(root, f"{scratch}/sliders", "in", "out")
        figures = {"photos": photos, "repeats": repeats, "batch_size": job.batch_size}
        figures |= _against_bare(job, slider, root, repeats, report)
        figures |= _against_slow(job, root, report)
        figures |= _against_plain(job, slider, root, figures["pipeline_images_per_s"], report)
        figures |= _growth(job, root, large, report)
        figures |= _full_size(job, root, report)
    return figures


def _job(root: Store, registry: str, source: str, output: str, **settings: Any) -> EditJob:
    values = {
        "name": "bench",
        "input": root.join(source).uri,
        "output": root.join(output).uri,
        "registry": registry,
        "sliders": {"smile": 1.0},
        "shard_images": 32,
        "batch_size": 16,
    }
    return EditJob(**(values | settings))


def _against_bare(
    job: EditJob, slider: Slider, root: Store, repeats: int, report: Report
) -> dict[str, Any]:
    """The whole pipeline, in turns with the editor alone in one process on decoded photos."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has
    editor = Editor(load_base("tiny"), [slider], job.editor)
    rows = _decoded(job, root)
    bare, through, costs = [], [], []
    with ray_session(num_cpus=4):
        for repeat in range(repeats):
            started = time.perf_counter()
            edit_rows(rows, editor, editor.edit, job)
            bare.append(len(rows) / (time.perf_counter() - started))
            run = job.model_copy(update={"output": root.join(f"out-{repeat}").uri})
            done = edit(run, console=Console(file=open(os.devnull, "w")))  # noqa: SIM115
            through.append(done.steady_images_per_s)
            costs.append(_store_seconds(rows, root) / len(rows))
            report(f"bare {bare[-1]:.2f} images/s, pipeline {through[-1]:.2f}")
    torch.set_num_threads(threads)
    ratios = [b / a for a, b in zip(bare, through, strict=True)]
    return {
        "bare_images_per_s": statistics.median(bare),
        "pipeline_images_per_s": statistics.median(through),
        "pipeline_over_bare": statistics.median(ratios),
        "pipeline_over_bare_spread": [min(ratios), max(ratios)],
        "store_seconds_a_photo": statistics.median(costs),
    }


def _decoded(job: EditJob, root: Store) -> list[PlannedRow]:
    """All photos of the input, as the base sees them."""
    prepared = prepare(
        job.model_copy(update={"output": root.join("listed").uri}), Console(quiet=True)
    )
    images = [
        i for shard in range(prepared.input_list.shards) for i in prepared.input_list.shard(shard)
    ]
    rows, *_ = load_photos(
        images, prepared.job, prepared.edits, prepared.references, prepared.sight
    )
    return [row for row in rows if not is_quarantined(row)]


def _store_seconds(rows: Sequence[PlannedRow], root: Store) -> float:
    """Seconds to read and write every photo, one after another: what the object store costs."""
    source, output = root.join("in"), root.join("store")
    started = time.perf_counter()
    for row in rows:
        output.write(row["key"], source.read(row["key"]))
    return time.perf_counter() - started


class SleepShard:
    """In place of EditShard: waits SLOW_S for each photo, as for a slow model on another device,
    and leaves the CPU to others.
    """

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        self.job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began, rows = time.time(), unpack(row)
        time.sleep(SLOW_S * len(rows))
        edited = [copied(row)[0] for row in rows]
        seconds = seconds_of(row) | {"edit_at_s": began, "edit_s": time.time() - began}
        return pack(row["shard"], edited, row["files"], **seconds)


def _against_slow(job: EditJob, root: Store, report: Report) -> dict[str, Any]:
    """The pipeline with a model that takes SLOW_S a photo, and how much of the time it works."""
    prepared = prepare(
        job.model_copy(update={"output": root.join("slow").uri}), Console(quiet=True)
    )
    with ray_session(num_cpus=4):
        shards = list(pipeline(prepared, range(prepared.input_list.shards), SleepShard).iter_rows())
        ended = time.time()
    rate = prepared.input_list.photos / (ended - min(shard["edit_at_s"] for shard in shards))
    report(f"a model of {SLOW_S} s a photo: {rate:.3f} images/s of {1 / SLOW_S:g}")
    return {"pipeline_over_bare_slow_model": rate * SLOW_S, "slow_model_seconds_a_photo": SLOW_S}


def _against_plain(
    job: EditJob, slider: Slider, root: Store, rate: float, report: Report
) -> dict[str, Any]:
    """The pipeline against a loop of diffusers' img2img with as many evaluations a photo."""
    import torch

    torch.set_num_threads(1)
    some = root.join("some")
    for entry in root.join("in").list()[:24]:
        some.write(entry.key, root.join("in").read(entry.key))
    base = base_folder(job.base)
    started = time.perf_counter()
    plain_loop(base, slider, some, root.join("plain"), job.editor.steps)
    plain = 24 / (time.perf_counter() - started)
    report(f"plain loop {plain:.2f} images/s")
    return {"plain_images_per_s": plain, "pipeline_over_plain_loop": rate / plain}


def _growth(job: EditJob, root: Store, large: Sequence[int], report: Report) -> dict[str, Any]:
    """Peak memory, and time a photo, of whole commands over few and over many small photos."""
    peaks, costs = {}, {}
    written = 0
    for photos in sorted(large):
        written = _write_tiny(root.join("tiny"), written, photos)
        run = job.model_copy(
            update={
                "input": root.join("tiny").uri,
                "output": root.join(f"tiny-{photos}").uri,
                "shard_images": 100,
                "batch_size": 50,
                "editor": job.editor.model_copy(update={"steps": 1, "working_px": 16}),
            }
        )
        peaks[photos], costs[photos] = _command(run)
        rate = 1 / costs[photos]
        report(f"{photos} photos: peak {peaks[photos] / 1e9:.2f} GB, {rate:.1f} images/s")
    few, many = min(large), max(large)
    return {
        "memory_growth": peaks[many] / peaks[few] - 1,
        "photo_seconds_growth": costs[many] / costs[few] - 1,
        "peak_bytes": {str(n): peak for n, peak in peaks.items()},
        "tiny_images_per_s": {str(n): 1 / cost for n, cost in costs.items()},
    }


def _full_size(job: EditJob, root: Store, report: Report) -> dict[str, Any]:
    """Seconds a photo and peak memory of whole commands on photos of 12 megapixels."""
    source, figures = root.join("full-size"), {}
    _write_full_size(source)
    for shard_images in (4, 32):
        changes = {
            "input": source.uri,
            "output": root.join(f"full-size-{shard_images}").uri,
            "shard_images": shard_images,
            "shard_mb": 1000,
        }
        peak, cost = _command(job.model_copy(update=changes))
        report(f"12 MP, {shard_images} a shard: {cost:.2f} s a photo, peak {peak / 1e9:.2f} GB")
        figures[str(shard_images)] = {"photo_seconds": cost, "peak_bytes": peak}
    return {"full_size_by_shard_images": figures}


def _write_full_size(store: Store) -> None:
    """Write 36 JPEGs of 4000 x 3000 pixels and about 5 MB each, as cameras do."""
    from io import BytesIO

    from PIL import Image

    for index in range(36):
        draw, file = np.random.default_rng(index), BytesIO()
        colours = Image.fromarray(draw.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        grain = draw.normal(0, 5, (3000, 4000, 3)).astype(np.float32)
        pixels = np.asarray(colours.resize((4000, 3000), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        store.write(f"{index:03d}.jpg", file.getvalue())


def _write_tiny(store: Store, first: int, last: int) -> int:
    """Write JPEGs of 32 px, numbered from `first`. Returns `last`."""
    from concurrent.futures import ThreadPoolExecutor
    from io import BytesIO

    from PIL import Image

    def put(index: int) -> None:
        pixels = np.random.default_rng(index).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).resize((32, 32)).save(file, "JPEG")
        store.write(f"{index // 1000:04d}/{index:07d}.jpg", file.getvalue())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(first, last)))
    return last


def _command(job: EditJob) -> tuple[float, float]:
    """Run `bs-ray edit` in a process of its own. Returns the peak bytes of all its processes, and
    the steady seconds a photo.
    """
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "job.json").write_text(job.model_dump_json())  # JSON is YAML
        command = [
            sys.executable,
            "-P",
            "-m",
            "bs_ray",
            "edit",
            f"{scratch}/job.json",
            "--json",
            f"{scratch}/done.json",
        ]
        process = subprocess.Popen(
            command,
            env=os.environ | WORKER_ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak = _Peak(process.pid)
        if process.wait():
            raise RuntimeError(f"bs-ray edit: got exit status {process.returncode}; expected 0")
        done = json.loads(Path(scratch, "done.json").read_text())
        return peak.stop(), 1 / done["steady_images_per_s"]


class _Peak:
    """The most memory that a process and its descendants held together (PSS), sampled."""

    def __init__(self, pid: int):
        self.pid, self.bytes = pid, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._done.set()
        self._thread.join()
        return self.bytes

    def _watch(self) -> None:
        import psutil

        while not self._done.wait(2.0):
            total = 0
            try:
                root = psutil.Process(self.pid)
                for process in [root, *root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:  # it has ended meanwhile
                        continue
            except psutil.Error:
                return
            self.bytes = max(self.bytes, total)
