"""The loop without Ray: plain engines, an injected report."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.words import PromptsDoNotSeparate
from bs_ray.train import checkpoint
from bs_ray.train.checkpoint import CheckpointError, Progress
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, run
from bs_ray.train.step import TrainingDiverged, TrainState
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher
from tests.train.conftest import PROMPTS, make_job, photo_rows


def parts_of(
    job: TrainJob, model: DiffusionModel, photos: PhotoPool, base: Path, samples: Sequence = ()
) -> TrainState:
    features = load_features(base, "cpu") if job.losses.perceptual else None
    return assemble(job, model, photos, features, PlainEngine, samples=samples)


class Keeper:
    """A report callable that keeps the checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reports: list[dict[str, float]] = []

    def __call__(self, numbers: dict[str, float], folder: Path | None) -> None:
        assert folder is not None
        self.reports.append(numbers)
        shutil.copytree(folder, self.folder / folder.name)


def silent(*_: object) -> None:
    pass


def test_resume_continues_bit_for_bit(model, photos, base, tmp_path) -> None:
    job = make_job()
    whole, keeper = parts_of(job, model, photos, base), Keeper(tmp_path)
    posted: list[int] = []
    done = run(whole, keeper, lambda step, numbers: posted.append(step))
    assert posted == [1, 2, 3, 4, 5, 6] and len(keeper.reports) == 2
    expected = {name: tensor.clone() for name, tensor in whole.student.state().items()}
    critic = whole.adversary.engine.state()
    whole.bank.detach()

    resumed = parts_of(job, model, photos, base)
    again = run(resumed, Keeper(tmp_path / "again"), silent, tmp_path / "step-000003")
    for name, tensor in resumed.student.state().items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in resumed.adversary.engine.state().items():
        assert torch.equal(tensor, critic[name]), name
    assert again.step == done.step == 6
    assert [h["triplet"] for h in again.history] == [h["triplet"] for h in done.history]


TEXT_ONLY = {"perceptual": 0, "adversarial": 0}
AGE = PROMPTS | {"positive": "a photo of a person, old", "negative": "a photo of a person, young"}
MODES = {
    "margin, latent critic": {
        "losses": {
            "triplet_form": "margin",
            "discriminator": "latent",
            "adversarial": 0.1,
            "adversarial_after": 0.0,
        }
    },
    "two sliders, cached, partly on policy": {
        "prompts": None,
        "sliders": {"smile": PROMPTS, "age": AGE},
        "teacher": {"mode": "cached", "samples": 8, "on_policy_fraction": 0.25},
    },
    "pairs": {
        "prompts": None,
        "pairs": {"images": "x", "target": "a face"},
        "losses": {
            "perceptual_reference": "real",
            "adversarial": 0.1,
            "adversarial_after": 0.0,
        },
    },
    "adversary of features on edits, with a share and a replay": {
        "losses": {
            "discriminator": "features",
            "adversarial_share": 0.3,
            "adversarial_after": 0.0,
            "adversarial_fake": "edit",
            "discriminator_steps": 2,
            "discriminator_replay": 4,
        }
    },
    "reference": {"algorithm": "concept_sliders", "losses": TEXT_ONLY, "batch_size": 1},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_resumes_bit_for_bit(model, base, tmp_path, mode) -> None:
    job = make_job(**{"steps": 4, "checkpoint_every": 2} | MODES[mode])
    rows = photo_rows(8)
    if job.pairs:
        for i, row in enumerate(rows):
            row["key"] = f"{(-1, 1)[i % 2]}/{i // 2}.jpg"

    def fresh() -> TrainState:
        pool = PhotoPool.load(rows, model)
        samples = []
        if job.teacher.mode == "cached":
            samples = list(
                SampleMaker(job, model, pool, Teacher(model, job.concepts)).make(range(8))
            )
        return parts_of(job, model, pool, base, samples)

    whole = fresh()
    done = run(whole, Keeper(tmp_path), silent)
    whole.bank.detach()
    resumed = fresh()
    run(resumed, Keeper(tmp_path / "again"), silent, tmp_path / "step-000002")
    assert any(bool(up.any()) for up in whole.bank.up.values())
    for name, tensor in resumed.student.state().items():
        assert torch.equal(tensor, whole.student.state()[name]), name
    assert all(number == number for number in done.history[-1].values())


def test_prompts_that_do_not_separate_are_refused(model, photos, base) -> None:
    same = PROMPTS | {"negative": PROMPTS["positive"]}
    state = parts_of(make_job(prompts=same), model, photos, base)
    with pytest.raises(PromptsDoNotSeparate, match=r"got 'a photo of a person, smiling' and .*"):
        run(state, silent, silent)


def test_divergence_stops_and_keeps_the_last_checkpoint(model, photos, base, tmp_path) -> None:
    state, keeper = parts_of(make_job(), model, photos, base), Keeper(tmp_path)

    def poison(step: int, _: dict[str, float]) -> None:
        if step == 4:
            next(iter(state.student.module.bank.up.values())).data.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="step 4: got"):
        run(state, keeper, poison)
    progress, _ = checkpoint.read(tmp_path / "step-000003", state.job)
    assert progress.step == 3 and len(keeper.reports) == 1


# --- checkpoints ---------------------------------------------------------------------------------
@pytest.fixture
def written(tmp_path: Path) -> Path:
    state = {"weight/a": torch.ones(3), "step": torch.tensor(2.0)}
    progress = Progress(step=2, scales={"steps": 2.0}, history=[{"step": 1.0}])
    checkpoint.write(tmp_path / "here", make_job(), progress, {"slider": state})
    return tmp_path / "here"


def test_what_is_read_is_what_was_written(written: Path) -> None:
    progress, states = checkpoint.read(written, make_job())
    assert progress == Progress(2, 0.0, {"steps": 2.0}, [{"step": 1.0}])
    assert states["slider"]["weight/a"].tolist() == [1, 1, 1]
    assert [p.name for p in written.parent.iterdir()] == ["here"]  # no draft is left


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.os, "rename", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(tmp_path / "here", make_job(), Progress(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "missing", "no state"])
def test_a_half_written_checkpoint_is_never_loaded(written: Path, damage: str) -> None:
    weights = written / "slider.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "missing":
        weights.unlink()
    else:
        (written / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint here: got an incomplete one.*Delete it"):
        checkpoint.read(written, make_job())


def test_another_job_is_refused_by_what_differs(written: Path) -> None:
    changed = make_job(lr=0.5, losses={"eta": 3.0, "adversarial": 0.1, "adversarial_after": 0.0})
    expected = r"got a job with losses.eta 3.0 \(was 2.0\), lr 0.5 \(was 0.001\); expected"
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.read(written, changed)
    assert json.loads((written / "state.json").read_text())["job"]["lr"] == 0.001
