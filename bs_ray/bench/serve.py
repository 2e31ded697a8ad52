"""The endpoint under rising load, overload and faults, against a server with a lock."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from ray import serve

from bs_ray.bench.load import Answers, Request, arrivals, clients, percentile
from bs_ray.config import ServeJob
from bs_ray.editing.editor import Editor
from bs_ray.models import base_folder, load_base
from bs_ray.ray_session import WORKER_ENV
from bs_ray.serve.deploy import build, running
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage.seaweed import LocalObjectStore
from bs_ray.testing import edit_of, random_slider

Report = Callable[[str], None]
_SLIDERS, _PROMPT = 32, "a photo of a person"
_PATIENCE = 1.7
"""Under overload, callers wait for this many times the unloaded median."""
_DEADLINE_S = 60.0
_FAULT_S = 40.0
"""Seconds of load around each fault."""


def bench_serve(
    loads: Sequence[int], seconds: float, overload_s: float, report: Report
) -> dict[str, Any]:
    """Everything that `bs-ray bench serve` measures, in one run.

    loads: numbers of clients that wait for their answers; seconds: of each load and kind.
    """
    with tempfile.TemporaryDirectory() as scratch, LocalObjectStore() as store:
        os.environ.update(store.env)
        model = load_base("tiny")
        registry = Registry(f"{store.make_bucket('bs-ray-bench')}/sliders")
        sliders = [
            registry.publish(random_slider(model, f"s{i:02}", seed=i)) for i in range(_SLIDERS)
        ]
        job = ServeJob.model_validate(
            {
                "name": "bench",
                "sliders": ["*"],
                "registry": registry.store.uri,
                "port": _free_port(),
                "editor": {"prompt": _PROMPT},
                "deadline_s": _DEADLINE_S,
                "autoscaling": {"min_replicas": 1, "max_replicas": 1},
            }
        )
        figures: dict[str, Any] = {"sliders": _SLIDERS, "steps": job.editor.steps}
        with running(job) as url:
            figures |= _rising(url, loads, seconds, report)
            figures |= _overhead(url, Editor(model, sliders, job.editor), report)
            figures |= large_photo(url, report)
            figures |= _overload(url, figures, overload_s, report)
        figures |= _locked(sliders, job.editor.steps, loads, seconds, figures, scratch, report)
        figures |= faults(job, store, report)
    return figures


# --- requests ---------------------------------------------------------------------------------
def _photo(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((64, 64)).save(file, "JPEG", quality=95)
    return file.getvalue()


_PHOTOS = [_photo(seed) for seed in range(32)]


def _uniform(number: int) -> Request:
    """A request with the same slider and strength for all."""
    return _request(number, {"s00": 1.0})


def _mixed(number: int) -> Request:
    """A request with one of 32 mixes of two sliders."""
    i = number % _SLIDERS
    return _request(number, {f"s{i:02}": 0.5 + i / 32, f"s{(i + 7) % _SLIDERS:02}": -0.7})


def _request(number: int, mix: dict[str, float]) -> Request:
    sliders = [{"name": name, "scale": scale} for name, scale in mix.items()]
    return {
        "files": {"image": ("photo.jpg", _PHOTOS[number % len(_PHOTOS)])},
        "data": {"sliders": json.dumps(sliders)},
    }


# --- arms -------------------------------------------------------------------------------------
def _rising(url: str, loads: Sequence[int], seconds: float, report: Report) -> dict[str, Any]:
    """One slider for all requests, and 32 mixes, in turns at each load."""
    found: dict[str, dict[str, Any]] = {"uniform": {}, "mixed": {}}
    asyncio.run(clients(f"{url}/v1/images/edits", 2, 5, _mixed))  # every slider is loaded once
    for load in loads:
        for kind, requests in (("uniform", _uniform), ("mixed", _mixed)):
            answers = asyncio.run(clients(f"{url}/v1/images/edits", load, seconds, requests))
            _expect_all_well(answers)
            found[kind][str(load)] = answers.figures()
            report(f"{kind}, {load} clients: {_line(answers)}")
    ratios = [found["mixed"][n]["per_s"] / found["uniform"][n]["per_s"] for n in found["mixed"]]
    return {
        **found,
        "mixed_over_uniform": statistics.median(ratios),
        "mixed_over_uniform_spread": [min(ratios), max(ratios)],
    }


def _locked(
    sliders: Sequence[Slider],
    steps: int,
    loads: Sequence[int],
    seconds: float,
    figures: dict[str, Any],
    scratch: str,
    report: Report,
) -> dict[str, Any]:
    """The server with a lock, and how many times its throughput bs_ray has at no longer a p99."""
    folder = Path(scratch, "adapters")
    folder.mkdir()
    for slider in sliders:
        (folder / f"{slider.card.name}.safetensors").write_bytes(slider.to_bytes())
    port = _free_port()
    command = [sys.executable, "-P", "-m", "bs_ray.bench.locked"]
    command += [str(base_folder("tiny")), str(folder), str(steps), str(port)]
    process = subprocess.Popen(command, env=os.environ | WORKER_ENV)
    found: dict[str, Any] = {}
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(url, process)
        asyncio.run(clients(f"{url}/v1/images/edits", 1, 2, _mixed))
        for load in loads:
            answers = asyncio.run(clients(f"{url}/v1/images/edits", load, seconds, _mixed))
            _expect_all_well(answers)
            found[str(load)] = answers.figures()
            report(f"locked, {load} clients: {_line(answers)}")
    finally:
        process.kill()
        process.wait()
    ratios = {load: _at_the_same_p99(figures["mixed"], theirs) for load, theirs in found.items()}
    return {
        "locked": found,
        "mixed_over_locked_by_load": ratios,
        "mixed_over_locked": ratios[str(max(loads))],
    }


def _at_the_same_p99(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The best throughput of ours with a p99 no longer than theirs, over their throughput."""
    within = [f["per_s"] for f in ours.values() if f["p99_ms"] <= theirs["p99_ms"]]
    return max(within, default=0.0) / theirs["per_s"]


def _overhead(url: str, editor: Editor, report: Report) -> dict[str, Any]:
    """What HTTP, Serve, decoding, queueing and encoding add to one edit of the bare editor."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pixels = np.asarray(Image.open(io.BytesIO(_PHOTOS[0])).convert("RGB"))
    edit = edit_of(editor, "k", pixels, {"s00": 1.0})
    bare, served = [], []
    with httpx.Client(base_url=url, trust_env=False) as client:
        for _ in range(20):
            began = time.perf_counter()
            editor.edit([edit])
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            client.post("/v1/images/edits", **_request(0, {"s00": 1.0})).raise_for_status()
            served.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    editor.close()
    overhead_ms = 1000 * statistics.median(b - a for a, b in zip(bare, served, strict=True))
    report(f"one edit: bare {1000 * statistics.median(bare):.0f} ms, served +{overhead_ms:.1f} ms")
    return {"bare_edit_ms": 1000 * statistics.median(bare), "overhead_ms": overhead_ms}


def large_photo(url: str, report: Report, repeats: int = 5) -> dict[str, Any]:
    """Seconds until a photo of twelve megapixels is answered, as a whole and in five boxes."""
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((4000, 3000))
    grain = rng.normal(0, 5, (3000, 4000, 1))  # as of a camera, so that it compresses like a photo
    file = io.BytesIO()
    pixels = np.clip(np.asarray(blobs) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    boxes = [[x, 900, x + 500, 1500] for x in range(200, 3700, 700)]
    found: dict[str, Any] = {}
    with httpx.Client(base_url=url, trust_env=False, timeout=_DEADLINE_S) as client:
        for kind, fields in (("whole", {}), ("boxes", {"boxes": json.dumps(boxes)})):
            for form in ("png", "jpeg"):
                request = _request(0, {"s00": 1.0})
                request["files"] = {"image": ("photo.jpg", file.getvalue())}
                request["data"] |= {"output_format": form, **fields}
                seconds = []
                for _ in range(repeats + 1):  # the first one warms up
                    began = time.perf_counter()
                    client.post("/v1/images/edits", **request).raise_for_status()
                    seconds.append(time.perf_counter() - began)
                took = sorted(seconds[1:])
                found[f"{kind}_{form}"] = [statistics.median(took), took[0], took[-1]]
                report(f"12 megapixels, {kind}, {form}: {took[0]:.2f} to {took[-1]:.2f} s")
    return {"large_photo_s": found}


def _overload(url: str, figures: dict[str, Any], seconds: float, report: Report) -> dict[str, Any]:
    """Twice the requests that the server can answer, by callers who do not wait long."""
    path = f"{url}/v1/images/edits"
    unloaded = asyncio.run(clients(path, 1, max(20.0, seconds / 4), _mixed))
    saturation = max(load["per_s"] for load in figures["mixed"].values())
    headers = {"x-request-timeout": f"{_PATIENCE * unloaded.percentile(0.5):.3f}"}
    before = _memory()
    loaded = asyncio.run(
        arrivals(path, 2 * saturation, seconds, lambda n: _mixed(n) | {"headers": headers})
    )
    time.sleep(5)
    after = _memory()
    ratio = loaded.percentile(0.99) / unloaded.percentile(0.99)
    report(
        f"overload {2 * saturation:.1f}/s: {dict(loaded.statuses)}, accepted {_line(loaded)}, "
        f"unloaded {_line(unloaded)}"
    )
    return {
        "p99_overload_over_unloaded": ratio,
        "unloaded": unloaded.figures(),
        "overload": {
            **loaded.figures(),
            "asked_per_s": 2 * saturation,
            "statuses": {str(status): n for status, n in loaded.statuses.items()},
            "refused_p99_ms": 1000 * percentile(loaded.refused_seconds, 0.99),
            "memory_growth": after / before - 1,
        },
    }


# --- faults -----------------------------------------------------------------------------------
def faults(job: ServeJob, store: LocalObjectStore, report: Report) -> dict[str, Any]:
    """Two replicas under load: one is killed, then both are replaced, then the registry's store is
    closed.

    Callers send a request at most twice.
    """
    two = {"min_replicas": 2, "max_replicas": 2}
    changed = {"port": _free_port(), "autoscaling": job.autoscaling.model_copy(update=two)}
    job = job.model_copy(update=changed)
    found: dict[str, Any] = {}
    failed = 0
    with running(job) as url:
        _until_replicas(job, 2)
        for name, fault in (
            ("killed", _kill_one),
            ("rolled", lambda: _roll(job)),
            ("store_down", store.close),
        ):
            load = clients(f"{url}/v1/images/edits", 3, _FAULT_S, _mixed, retries=1)
            with ThreadPoolExecutor(1) as thread:
                calls = thread.submit(asyncio.run, load)
                time.sleep(5)
                began = time.monotonic()
                fault()
                _until_replicas(job, 2)
                found[f"{name}_back_s"] = time.monotonic() - began
                statuses = calls.result().statuses
            failed += sum(n for status, n in statuses.items() if status != 200)
            report(f"{name}: back in {found[f'{name}_back_s']:.1f} s, {dict(statuses)}")
    return {**found, "failed_after_one_retry": failed}


def _kill_one() -> None:
    """Kill a replica, and wait until it has ended."""
    victim = _replicas()[0]
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)


def _roll(job: ServeJob) -> None:
    """Deploy a new version of the application, so that every replica is replaced."""
    old = {process.pid for process in _replicas()}
    changed = job.model_copy(update={"max_batch_rows": job.max_batch_rows - 1})
    serve.run(build(changed), name=job.name, route_prefix="/")
    while old & {process.pid for process in _replicas()}:
        time.sleep(0.2)


def _replicas() -> list[psutil.Process]:
    """The processes of the editor deployment."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "ServeReplica" in (title := _title(process)) and ":editor" in title
    ]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _until_replicas(job: ServeJob, count: int) -> None:
    while True:
        status = serve.status().applications[job.name].deployments["editor"]
        if status.replica_states.get("RUNNING", 0) >= count and len(_replicas()) >= count:
            return
        time.sleep(0.1)


# --- small parts ------------------------------------------------------------------------------
def _memory() -> float:
    """Bytes (PSS) of all processes that were started here."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return float(total)


def _expect_all_well(answers: Answers) -> None:
    if set(answers.statuses) != {200}:
        raise RuntimeError(f"bench: got statuses {dict(answers.statuses)}; expected 200 alone")


def _line(answers: Answers) -> str:
    p50, p99 = (1000 * answers.percentile(share) for share in (0.5, 0.99))
    return f"{answers.per_s:.2f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms (N {len(answers.seconds)})"


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"locked server: got exit status {process.returncode}; expected it to run")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
