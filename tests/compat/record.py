"""Writes data/ with an earlier version; data/README.md says how it was run. No test."""
# ruff: noqa: I001 (the modules of that version are not here)

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from safetensors.torch import save_file

from bs_ray import concept_sliders
from bs_ray.batch.plan import prepare
from bs_ray.config import EditorSettings, job_hash, load
from bs_ray.data.decode import decode
from bs_ray.data.manifest import INPUT_KEY
from bs_ray.data.stages import edits_of
from bs_ray.editing.editor import Edit, Editor, outputs_of
from bs_ray.models import load_base
from bs_ray.progress import Board
from bs_ray.raysession import ray_session
from bs_ray.seaweed import LocalObjectStore
from bs_ray.serve.keys import add_key
from bs_ray.sliders.artifact import Slider
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.tiny.drawn import ingest_tiny_world
from bs_ray.train import checkpoint
from bs_ray.train.cache import ensure_cache, load_photos
from bs_ray.train.run import train
from bs_ray.train.samples import CachedLessons
from bs_ray.train.teacher import Teacher

METHODS = {
    "displacement": {"steps": 3, "soft_mask": 0.5},
    "infedit": {"steps": 3, "strength": 0.8, "weights": "infedit", "steer": 1.5},
    "uncalibrated": {"preset": "balanced", "steps": 2, "calibrated": False},
    "sdedit": {"method": "sdedit", "steps": 3, "strength": 0.5},
    "ddim_inversion": {"method": "ddim_inversion", "steps": 3, "fixed_point": 1},
    "edit_friendly": {"method": "edit_friendly", "steps": 3, "strength": 0.7},
}
MIXES = [{"smile": 1.0}, {"smile": -0.75, "grin": 0.5}]
STRENGTHS = [-1.5, -1.0, -0.3, 0.0, 0.5, 1.0, 1.7]
RUN = "import socket; socket.gethostname = lambda: 'a-host'; from bs_ray.cli import main; main()"


def photos(world: Path) -> None:
    """Six portraits to train on."""
    shutil.copytree(world / "lfw", "photos")


def training() -> None:
    """A run that is left half-way, and the slider that it ended with."""
    job = load("jobs/train.yaml")
    train(job, console=Console())
    (run,) = Path("runs").iterdir()
    kept = [name for name in checkpoint.names(Store(run)) if name.startswith("step-000002-")]
    for path in run.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def few_layers() -> None:
    """A slider without prompts, and with few layers so that it is small."""
    whole = Registry("sliders").resolve("smile@1")
    card = whole.card.model_copy(
        update={
            "name": "grin",
            "prompts": None,
            "pictured": "a photo of a face",
            "calibration": None,
            "training": {"imported_from": "grin.safetensors"},
        }
    )
    layers = sorted(whole.factors)[:: len(whole.factors) // 4]
    factors = {layer: (whole.factors[layer][0], 3 * whole.factors[layer][1]) for layer in layers}
    Registry("sliders").publish(Slider(card, factors))


def strengths() -> dict:
    """What the cards make of strengths."""
    found = {}
    for name in ("smile", "grin"):
        card = Registry("sliders").resolve(name).card
        found[name] = {
            "target": card.target,
            "scales": {s: card.scale_of(s) for s in STRENGTHS},
            "notes": [note for s in STRENGTHS if (note := card.beyond(s))],
        }
    return found


def edits(world: Path) -> dict[str, torch.Tensor]:
    """Method -> every 4th pixel of its outputs, float32 [mixes, 16, 16, 3]."""
    data = (world / "wild" / "2022" / "01" / "img-00000.jpg").read_bytes()
    row = decode("photo", data, max_pixels=10**6)
    sliders, found = [Registry("sliders").resolve(name) for name in ("smile", "grin")], {}
    model = load_base("tiny")
    for name, settings in METHODS.items():
        editor = Editor(model, sliders, EditorSettings.model_validate(settings))
        (outcome,) = editor.edit([Edit(row["sha256"], row["pixels"], MIXES, seed=5)])
        pixels = [torch.from_numpy(output.pixels)[::4, ::4] for output in outputs_of(outcome)]
        found[name] = torch.stack(pixels).contiguous()
        editor.close()
    return found


def teacher_cache() -> dict[str, torch.Tensor]:
    """A finished cache, and the lesson of its first step."""
    job, model = load("jobs/train-cached.yaml"), load_base("tiny")
    with ray_session():
        store = ensure_cache(job, "tiny", model.base_id, model.latent_shape, Board(), print)
    rows = pq.read_table(Path(store.uri) / "shard-00000.parquet").to_pylist()
    pool, teacher = load_photos(job, model), Teacher(model, job.concepts)
    lessons = CachedLessons.load(
        rows, job=job, model=model, photos=pool, teacher=teacher, bank=None
    )
    lesson = lessons.at(0, range(2))
    return {
        "x_t": lesson.x_t,
        "t": lesson.t,
        "strengths": lesson.gates,
        "target": lesson.target,
        "neutral": lesson.neutral,
        "tokens": lesson.condition.tokens[:, :4].contiguous(),
    }


def meanings() -> dict:
    """Job file with overrides -> its hash and its settings."""
    asked = {path.name: [] for path in sorted(Path("jobs").glob("*.yaml"))}
    found = {name: _meaning(load(f"jobs/{name}")) for name in asked}
    for name, override in {
        "edit.yaml": "editor.strength=0.4",
        "edit-packed.yaml": "plan=other",
        "evaluate.yaml": "settings.text=8",
    }.items():
        found[f"{name} {override}"] = _meaning(load(f"jobs/{name}", [override]))
    for name in ("prompts.yaml", "config.yaml"):
        job, _ = concept_sliders.read(Path("concept-sliders", name), ["photos=photos"])
        found[f"concept-sliders/{name}"] = _meaning(job)
    return found


def _meaning(job) -> dict:
    return {"hash": job_hash(job), "settings": job.model_dump()}


def half_way(world: Path) -> None:
    """A job that was stopped by Ctrl-C after its first shard, and what it would have become."""
    job, source = load("jobs/edit.yaml"), Store("s3://bs-ray-tests/compat/in")
    for name in sorted((world / "wild").rglob("*.jpg")):
        source.write(name.name, name.read_bytes())
    command = [sys.executable, "-u", "-c", RUN, "edit", "jobs/edit.yaml"]
    subprocess.run([*command, "output=s3://bs-ray-tests/compat/whole"], check=True)
    output = Store(job.output)
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    for line in driver.stdout:
        print(line, end="")
        if " of 6, " in line:
            break
    driver.send_signal(signal.SIGINT)
    print("driver ended with", driver.wait())
    assert len(output.list("_bs_ray/shards/")) < 3, "it was done too soon: record again"
    _save(source, "ledger/in")
    _save(output, "ledger/out")
    there = {entry.key for entry in output.list()}
    whole = Store("s3://bs-ray-tests/compat/whole")
    for entry in whole.list():
        if entry.key.startswith("images/") and entry.key not in there:
            _write(f"ledger/rest/{entry.key}", whole.read(entry.key))
    for key in ("summary.json", "quarantine.jsonl", "manifest.parquet"):
        _write(f"ledger/rest/{key}", whole.read(key))
    for key in there:
        if key.startswith("images/"):
            assert output.read(key) == whole.read(key)


def packed(world: Path) -> list:
    """The pinned input of a job whose photos say themselves what to do with them; their edits."""
    job, files = load("jobs/edit-packed.yaml"), sorted((world / "wild").rglob("*.jpg"))
    own = [{"up": {"smile": 1.0}}, None, {"a": {"smile": 0.5, "grin": -1.0}, "b": {"grin": 2.0}}]
    table = pa.table(
        {
            "name": ["one", "two", "three"],
            "jpg": [files[index].read_bytes() for index in (0, 2, 5)],
            "edits": [json.dumps(edit) if edit else None for edit in own],
        }
    )
    file = BytesIO()
    pq.write_table(table, file)
    Store(job.input).write("part.parquet", file.getvalue())
    plan = prepare(job, Console())
    _save(Store(job.input), "ledger-packed/in")
    _write(f"ledger-packed/out/{INPUT_KEY}", plan.output.read(INPUT_KEY))
    rows = [row for shard in range(plan.manifest.shards) for row in plan.manifest.shard(shard)]
    return [[row["key"], edits_of(row, plan.edits, plan.names)] for row in rows]


def keys() -> dict[str, str]:
    """Names of keys -> the keys."""
    return {
        "everything": add_key("keys.yaml", "everything"),
        "limited": add_key(
            "keys.yaml", "limited", sliders=["smile", "age-*"], requests_per_minute=600.0, burst=5
        ),
    }


def _save(store: Store, folder: str) -> None:
    for entry in store.list():
        if not entry.key.endswith("latest.png"):
            _write(f"{folder}/{entry.key}", store.read(entry.key))


def _write(path: str, data: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


def main() -> None:
    """Everything, below the working folder, which holds jobs/ and concept-sliders/."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        ingest_tiny_world(folder, photos=6, people=3, broken=2, seed=3)
        photos(world)
        training()
        few_layers()
        expected = {"strengths": strengths(), "jobs": meanings(), "keys": keys()}
        expected |= {"methods": METHODS, "mixes": MIXES}
        save_file(edits(world), "edits.safetensors")
        save_file(teacher_cache(), "batch.safetensors")
        shutil.copy(world / "wild" / "2022" / "01" / "img-00000.jpg", "photo.jpg")
        with LocalObjectStore() as store:
            os.environ |= store.env
            store.make_bucket("bs-ray-tests")
            half_way(world)
            expected["packed"] = packed(world)
    Path("expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
