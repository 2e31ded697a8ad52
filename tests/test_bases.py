"""Every verb takes a base in every layout that people have, and makes the same of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from bs_ray.batch.edit import EditShard
from bs_ray.batch.prepare import settings_of
from bs_ray.config import EditJob, EditorSettings, EvalJob, Prompts, ServeJob, TrainJob
from bs_ray.editing.editor import Editor, outputs_of, to_uint8
from bs_ray.editing.single_photo import OnePhoto
from bs_ray.evaluate.arms import arms_of
from bs_ray.models import absolute_base, identify_base, load_base
from bs_ray.serve.deploy import check as check_serve
from bs_ray.serve.deploy import running
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.testing import edit_of, random_slider
from bs_ray.train.run import _check as check_train
from tests.models import layouts
from tests.models.hub_server import Hub, serving
from tests.serve.api import free_port

LAYOUTS = ("fp32", "fp16 variant", "both", "sharded", "snapshot", "single file", "hub", "s3")
HALF = {"fp16 variant", "snapshot", "hub"}
"""Layouts of which float16 is all there is."""
SETTINGS = EditorSettings(steps=2)


@pytest.fixture(scope="module")
def registry(whole_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slider that was trained on the base in float32."""
    folder = str(tmp_path_factory.mktemp("sliders"))
    slider = random_slider(load_base(str(whole_base)), "smile", 0)
    strong = {layer: (a, 20 * b) for layer, (a, b) in slider.factors.items()}
    Registry(folder).publish(Slider(slider.card, strong))
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(file)
    return file


def edits_of_all_verbs(base: str, registry: str, photo: Path, place: Path) -> dict[str, Any]:
    """By verb: the id of its base, or the photo as it edits it, without Ray."""
    shared = {"name": "layouts", "base": base, "registry": registry, "editor": SETTINGS}
    pixels = np.asarray(Image.open(photo))
    found: dict[str, Any] = {}

    one = OnePhoto(photo, {"smile": 1.0}, SETTINGS, base=base, registry=registry)
    found["edit-one"] = np.asarray(Image.open(io.BytesIO(one.edit()[0])))
    key = one.row["sha256"]

    job = EditJob(**shared, input="in", output="out", sliders={"smile": 1.0})
    sliders = {"smile": Registry(registry).resolve_on("smile", identify_base(base), "refuse")}
    shard = EditShard(
        job.model_copy(update={"base": absolute_base(base)}), settings_of(job, sliders)
    )
    found["edit"] = _edited(shard.editor, key, pixels)

    [arm] = arms_of(EvalJob(**shared, sliders=["smile"], other_bases="refuse"))  # type: ignore[arg-type]
    editor = Editor(load_base(arm.base), [arm.resolved()], arm.editor)
    found["evaluate"] = _edited(editor, key, pixels)

    served = check_serve(
        ServeJob(**shared, sliders=["smile"], other_bases="refuse", port=free_port())
    )
    found["serve"] = served["smile"].card.base_id
    prompts = Prompts(target="person", positive="smiling", negative="frowning")
    places = {"registry": str(place / "sliders"), "runs": str(place / "runs")}
    losses = {"perceptual": 0, "adversarial": 0}
    train = TrainJob(name="smile", base=base, prompts=prompts, losses=losses, **places)  # type: ignore[arg-type]
    found["train"] = check_train(train).base_id
    return found


def _edited(editor: Editor, key: str, pixels: np.ndarray) -> np.ndarray:
    [output] = outputs_of(editor.edit([edit_of(editor, key, pixels, {"smile": 1.0})])[0])
    return to_uint8(output.pixels)


@pytest.fixture(scope="module")
def expected(
    whole_base: Path, registry: str, photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    torch.set_num_threads(1)
    return edits_of_all_verbs(str(whole_base), registry, photo, tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_verb_takes_every_layout(
    layout: str,
    whole_base: Path,
    registry: str,
    photo: Path,
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv("BS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    bucket = request.getfixturevalue("bucket") if layout == "s3" else None
    base = layouts.in_layout(layout, whole_base, tmp_path, bucket)
    found = edits_of_all_verbs(base, registry, photo, tmp_path)
    moved = np.abs(expected["edit"].astype(int) - np.asarray(Image.open(photo))).max()
    assert moved > 20, "the slider must move the photo for this to mean anything"
    for verb, outcome in found.items():
        if isinstance(outcome, str):
            assert outcome == expected[verb], verb
        else:
            apart = np.abs(outcome.astype(int) - expected[verb])
            # Where tensors lie in memory decides the last bits of a matrix product.
            assert apart.max() <= (3 if layout in HALF else 1), verb


# --- each verb once from end to end ---------------------------------------------------------------
@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, whole_base: Path) -> Iterator[dict[str, Any]]:
    """A hub with the base, and an environment in which every cache is empty."""
    place = tmp_path_factory.mktemp("end-to-end")
    with serving(Hub({layouts.REPO: whole_base})) as hub:
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(place / "hub"),
            "BS_RAY_CACHE": str(place / "cache"),
        }
        yield {"place": place, "env": env, "hub": hub}


def bs_ray(world: dict[str, Any], *words: str) -> str:
    command = [sys.executable, "-m", "bs_ray", *words]
    done = subprocess.run(command, env=world["env"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_the_verbs_from_end_to_end(
    world: dict[str, Any], whole_base: Path, registry: str, photo: Path
) -> None:
    """Train on shards, edit by a hub id, edit-one with a file, evaluate on the fp16 variant, and
    serve a snapshot."""
    place = world["place"]
    photos = place / "photos"
    photos.mkdir()
    for number in range(3):
        turned = np.rot90(np.asarray(Image.open(photo)), number)
        Image.fromarray(turned).save(photos / f"{number}.png")
    bs_ray(world, "ingest", "photos", str(photos), str(place / "shards"))
    made = {layout: layouts.in_layout(layout, whole_base, place) for layout in _END_TO_END}

    jobs = {
        "train": {
            "base": made["sharded"],
            "prompts": {"target": "person", "positive": "smiling", "negative": "frowning"},
            "losses": {"perceptual": 0, "adversarial": 0},
            "photos": str(place / "shards"),
            "steps": 2,
            "workers": 1,
            "batch_size": 2,
            "calibrate": False,
            "registry": str(place / "sliders"),
            "runs": str(place / "runs"),
        },
        "edit": {
            "base": layouts.REPO,
            "input": str(photos),
            "output": str(place / "out"),
            "sliders": {"smile": 1.0},
            "registry": str(place / "sliders"),
            "other_bases": "refuse",
            "editor": {"steps": 2},
        },
        "evaluate": {
            "base": made["fp16 variant"],
            "output": str(place / "report"),
            "sliders": ["smile"],
            "splits": {"faces": 2},
            "registry": registry,
            "other_bases": "refuse",
            "editor": {"steps": 2},
        },
    }
    for kind, job in jobs.items():
        file = place / f"{kind}.yaml"
        file.write_text(json.dumps({"kind": kind, "name": "smile", **job}))
        bs_ray(world, kind, str(file))
    assert (place / "sliders" / "smile" / "0001.safetensors").is_file()
    assert len(list((place / "out" / "images").glob("*.png"))) == 3
    assert (place / "report" / "report.html").is_file()

    out = place / "one.png"
    words = ["--slider", "smile=1", "--registry", registry, "--other-bases", "refuse"]
    bs_ray(world, "edit-one", str(photo), *words, "--base", made["single file"], "--out", str(out))
    assert out.is_file()
    shown = json.loads(bs_ray(world, "bases", "show", layouts.REPO, "--json"))
    assert shown["id"] == identify_base(str(whole_base)).id and shown["dtype"] == "float32"
    assert layouts.REPO in bs_ray(world, "bases", "list")

    served = ServeJob(
        name="layouts",
        base=made["snapshot"],
        registry=registry,
        sliders=["smile"],
        editor=SETTINGS,
        other_bases="refuse",
        port=free_port(),
    )
    with running(served) as url:
        reply = httpx.post(
            f"{url}/v1/images/edits",
            files={"image": photo.read_bytes()},
            data={"sliders": '[{"name": "smile", "scale": 1.0}]'},
            timeout=60,
        )
    assert reply.status_code == 200 and reply.json()["data"][0]["b64_json"]


_END_TO_END = ("sharded", "fp16 variant", "single file", "snapshot")
