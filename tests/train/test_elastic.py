"""Elastic workers: a node goes and another comes, and the run goes on with what there is."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.datasets.shards import PHOTO_SCHEMA
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, run
from tests.train.conftest import make_job, photo_rows

_PATIENCE_S = 250


def stored(job: TrainJob) -> int:
    keys = [entry.key for entry in Store(job.runs).list() if "/step-" in entry.key]
    return max((int(key.split("/step-")[1][:6]) for key in keys), default=0)


def wait_for_step(job: TrainJob, step: int, trainer: threading.Thread) -> None:
    stop_s = time.monotonic() + _PATIENCE_S
    while stored(job) < step:
        assert trainer.is_alive() and time.monotonic() < stop_s, f"no checkpoint of step {step}"
        time.sleep(0.05)


def with_a_cluster(job: TrainJob) -> None:
    """Train on two one-worker nodes; remove one, then add one. A process of its own: its Ray."""
    # Ray counts a lost node's resources for a while and waits this long for workers there.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "12"
    import ray
    from ray.cluster_utils import Cluster

    from bs_ray.train.run import train

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address)
    trainer = threading.Thread(target=train, args=(job,))
    trainer.start()
    wait_for_step(job, 2, trainer)
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_for_step(job, stored(job) + 4, trainer)
    cluster.add_node(num_cpus=2)
    trainer.join(timeout=_PATIENCE_S)
    assert not trainer.is_alive()
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.ray
def test_a_node_goes_and_another_comes(base: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    table = pa.Table.from_pylist(photo_rows(), schema=PHOTO_SCHEMA)
    pq.write_table(table, tmp_path / "photos" / "shard-00000.parquet")
    places = {name: str(tmp_path / name) for name in ("photos", "registry", "runs")}
    # Each node has room for one worker; the head for the tasks that read photos.
    job = make_job(
        **places,
        base=str(base),
        workers=(1, 2),
        cpus_per_worker=1.5,
        steps=24,
        checkpoint_every=2,
        max_failures=3,
        calibrate=False,
        tracking={"tensorboard": False},
    )
    child = multiprocessing.get_context("spawn").Process(target=with_a_cluster, args=(job,))
    child.start()
    child.join(timeout=2 * _PATIENCE_S)
    assert child.exitcode == 0
    slider = Registry(job.registry).resolve("smile")
    assert slider.card.training["steps"] == 24

    off = distance(slider.factors, one_process(job))
    print(f"after 2 -> 1 workers: weights {off:.1e} of their norm from one process's")
    assert off < 0.05


def one_process(job: TrainJob) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    model = load_base(job.base)
    pool = PhotoPool.load(photo_rows(), model)
    state = assemble(job, model, pool, load_features(Path(job.base), "cpu"), PlainEngine)
    run(state, lambda *_: None, lambda *_: None)
    return {
        key.replace("/", "."): (
            a.detach(),
            state.bank.up[key].detach() * state.bank.alpha_over_rank,
        )
        for key, a in state.bank.down.items()
    }


def distance(found: dict, expected: dict) -> float:
    """Norm of the difference of the updates B A over the norm of what was expected."""
    updates = [
        ((b.flatten(1) @ a.flatten(1)), (y.flatten(1) @ x.flatten(1)))
        for (a, b), (x, y) in ((found[layer], expected[layer]) for layer in expected)
    ]
    off = sum(float((f - e).square().sum()) for f, e in updates)
    return (off / sum(float(e.square().sum()) for _, e in updates)) ** 0.5
