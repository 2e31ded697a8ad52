"""What version 0.1.0 wrote on its way is read and finished: a ledger, a registry, a checkpoint.

tests/earlier/ was made by that version: `bucket/` is an edit job of two photos, stopped after its
first shard, with its registry; `checkpoint/` is a training run of four steps, stopped after two;
`expected/` and `checkpoint-expected.json` are what the version made of the rest.
"""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bs_ray.batch.run import edit
from bs_ray.config import EditJob, TrainJob, load
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.storage import Store
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import assemble, run

EARLIER = Path(__file__).parent / "earlier"


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)


def test_an_edit_job_goes_on_in_its_ledger(ray_cluster: None) -> None:
    root = Store("s3://bs-ray-tests/earlier")  # the place is part of the pinned settings
    for path in (EARLIER / "bucket").rglob("*.*"):
        root.write(path.relative_to(EARLIER / "bucket").as_posix(), path.read_bytes())
    before = {entry.key: entry.etag for entry in root.list("out/images/")}
    assert len(before) == 2
    job = load(EARLIER / "edit.yaml")
    assert isinstance(job, EditJob)
    done = edit(job)
    assert (done.inputs, done.edited, done.skipped_shards) == (2, 2, 1)
    after = {entry.key: entry.etag for entry in root.list("out/images/")}
    assert before.items() <= after.items() and len(after) == 4
    for name, sign in (("plus", "+1"), ("minus", "-1")):
        found = pixels_of(root.read(f"out/images/smile{sign}/1.png"))
        expected = pixels_of((EARLIER / "expected" / f"{name}.png").read_bytes())
        assert np.abs(found - expected).max() <= 1


def test_a_training_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(EARLIER / "checkpoint", folder := tmp_path / "checkpoint")
    saved = json.loads((folder / "state.json").read_text())["job"]
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))
    model = load_base("tiny")
    photos = PhotoPool(["a", "b"], pixels, model)
    state = assemble(TrainJob.model_validate(saved), model, photos, None, PlainEngine)
    progress = run(state, lambda *_: None, lambda *_: None, resume_from=folder)
    state.bank.detach()
    weights = torch.cat([up.detach().flatten() for up in state.bank.up.values()])
    expected = json.loads((EARLIER / "checkpoint-expected.json").read_text())
    assert progress.step == 4
    assert float(weights.norm()) == pytest.approx(expected["norm"], rel=1e-4)
    assert float(weights.sum()) == pytest.approx(expected["sum"], rel=1e-3)
