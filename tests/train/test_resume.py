"""Killed runs, resumed: their sliders are bit for bit those of the run that was left alone.

With an equal number of workers, that is: another number adds gradients up in another order
(tests/train/test_elastic.py says how much that changes).
"""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.datasets.shards import PHOTO_SCHEMA
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.train import checkpoint
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, run
from bs_ray.train.run import train
from tests.train.conftest import make_job, photo_rows

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def photos(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    table = pa.Table.from_pylist(photo_rows(), schema=PHOTO_SCHEMA)
    pq.write_table(table, tmp_path / "photos" / "shard-00000.parquet")
    return str(tmp_path / "photos")


def job_at(place: str, photos: str, base: Path, **changes) -> TrainJob:
    settings = {"steps": 8, "checkpoint_every": 2, "calibrate": False}
    settings |= {"tracking": {"tensorboard": False}}
    places = {"photos": photos, "base": str(base)}
    places |= {name: f"{place}/{name}" for name in ("registry", "runs")}
    return make_job(**settings | places | changes)


def left_alone(job: TrainJob) -> Factors:
    """The slider of an undisturbed run of one plain-torch worker, in this process."""
    torch.set_num_threads(os.cpu_count() or 1)  # as a worker that has the machine to itself
    model = load_base(job.base)
    pool = PhotoPool.load(photo_rows(), model)
    state = assemble(job, model, pool, load_features(Path(job.base), "cpu"), PlainEngine)
    run(state, lambda *_: None, lambda *_: None)
    factors = {
        key.replace("/", "."): (
            a.detach().clone(),
            state.bank.up[key].detach() * state.bank.alpha_over_rank,
        )
        for key, a in state.bank.down.items()
    }
    state.bank.detach()
    return factors


def published(job: TrainJob) -> Factors:
    return Registry(job.registry).resolve(job.name).factors


def assert_same(found: Factors, expected: Factors) -> None:
    assert found.keys() == expected.keys()
    assert any(b.any() for _, b in found.values())
    for layer, (a, b) in expected.items():
        assert torch.equal(found[layer][0], a) and torch.equal(found[layer][1], b), layer


def run_store(job: TrainJob) -> Store:
    """Where the job's one run keeps its checkpoints."""
    store = Store(job.runs)
    return store.join(store.list()[0].key.partition("/")[0])


# --- killing -------------------------------------------------------------------------------------
def train_workers(root: int) -> list[psutil.Process]:
    """Ray Train's workers among the descendants of a driver."""
    try:
        below = psutil.Process(root).children(recursive=True)
        return [p for p in below if "RayTrainWorker" in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def steps_stored(job: TrainJob) -> int:
    """Steps of the newest checkpoint, whole or not; 0 for none."""
    keys = [entry.key for entry in Store(job.runs).list() if "/step-" in entry.key]
    return max((int(key.split("/step-")[1][:6]) for key in keys), default=0)


@contextmanager
def killer(
    due: Callable[[], bool], kill: Callable[[], None], every_s: float = 0.1
) -> Iterator[list[float]]:
    """Within, a thread looks every so often and kills once it is `due`; the list says when."""
    done: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            if due():
                kill()
                done.append(time.monotonic())
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def kill_one_worker(root: int, rng: random.Random) -> Callable[[], None]:
    return lambda: rng.choice(train_workers(root)).kill()


# --- in every run of the tests -------------------------------------------------------------------
def test_a_killed_worker_and_a_broken_checkpoint_leave_no_trace(
    ray_cluster, bucket: Store, photos: str, base: Path
) -> None:
    job = job_at(bucket.uri, photos, base, engine="torch", max_failures=1)
    expected = left_alone(job)
    broken: list[str] = []

    def kill_and_break() -> None:
        """And the last upload looks as if it had not come to its end."""
        kill_one_worker(os.getpid(), random.Random(0))()
        store = run_store(job)
        broken.append(checkpoint.names(store)[0])
        weights = f"{broken[0]}/slider.safetensors"
        store.write(weights, store.read(weights)[:-4] if store.exists(weights) else b"")

    screen = io.StringIO()
    with killer(lambda: steps_stored(job) >= 4, kill_and_break) as done:
        train(job, console=Console(file=screen, width=300))
    assert done, "the run was over before its worker was killed"
    assert f"checkpoint {broken[0]}: got an incomplete one" in screen.getvalue()
    assert_same(published(job), expected)


# --- slow ----------------------------------------------------------------------------------------
def command(job: TrainJob, folder: Path) -> subprocess.Popen:
    """`bs-ray train` on the job, a driver of its own."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return subprocess.Popen([sys.executable, "-m", "bs_ray", "train", str(file)])


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_driver(seed: int, tmp_path: Path, bucket: Store, photos: str, base: Path) -> None:
    job = job_at(bucket.uri, photos, base, engine="torch")
    expected = left_alone(job)
    rng = random.Random(seed)
    driver = command(job, tmp_path)
    after = rng.choice([2, 4])
    while steps_stored(job) < after:
        assert driver.poll() is None
        time.sleep(0.01)
    time.sleep(rng.random() / 2)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert Registry(job.registry).list() == {}
    # An upload that broke off is passed over.
    newest = checkpoint.names(run_store(job))[0]
    run_store(job).delete(f"{newest}/state.json")
    assert command(job, tmp_path).wait() == 0
    assert_same(published(job), expected)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stage", [2, 3])
def test_a_worker_of_two_killed_while_a_checkpoint_is_uploaded(
    ray_cluster, stage: int, seed: int, tmp_path: Path, photos: str, base: Path
) -> None:
    """Killed within milliseconds of the first file of a checkpoint in the run's folder."""
    settings = {"workers": 2, "zero_stage": stage, "max_failures": 2}
    calm = job_at(str(tmp_path / "calm"), photos, base, **settings)
    train(calm)
    job = job_at(str(tmp_path / "killed"), photos, base, **settings)
    rng = random.Random(seed)
    after = rng.choice([2, 4])
    kill = kill_one_worker(os.getpid(), rng)
    with killer(lambda: steps_stored(job) >= after, kill, every_s=0.002) as done:
        train(job)
    assert done, "the run was over before a worker was killed"
    assert_same(published(job), published(calm))
