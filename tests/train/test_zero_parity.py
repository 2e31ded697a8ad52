"""Two workers at every ZeRO stage against one plain-torch process: the same training, to rounding.

The only guard against DeepSpeed training wrong in silence with two engines in one process.
"""

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.train.engines import DeepSpeedEngine, PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import MakeEngine, assemble
from bs_ray.train.losses import Features
from bs_ray.train.photos import PhotoPool
from bs_ray.train.step import Parts, train_step
from tests.train.conftest import make_job, photo_rows

STAGES = (0, 1, 2, 3)


def load_world(base: Path) -> tuple[DiffusionModel, Features, PhotoPool]:
    torch.set_num_threads(1)
    model = load_base(str(base))
    return model, load_features(base, "cpu"), PhotoPool.load(photo_rows(), model)


def fresh(world, make_engine: MakeEngine, rank: int = 0, workers: int = 1) -> Parts:
    model, features, photos = world
    # Rank 3: tensors whose size two workers cannot share evenly.
    job = make_job(workers=workers, rank=3, alpha=3.0)
    return assemble(job, model, photos, features, make_engine, rank, workers)


def states(parts: Parts) -> dict[str, torch.Tensor]:
    assert parts.discriminator is not None
    engines = {"slider": parts.student, "discriminator": parts.discriminator}
    return {f"{n}/{k}": v for n, engine in engines.items() for k, v in engine.state().items()}


def load_states(parts: Parts, saved: dict[str, torch.Tensor]) -> None:
    assert parts.discriminator is not None
    engines = {"slider": parts.student, "discriminator": parts.discriminator}
    for name, engine in engines.items():
        own = {k.removeprefix(f"{name}/"): v for k, v in saved.items() if k.startswith(f"{name}/")}
        engine.load_state(own)


def worker(rank: int, base: Path, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    world = load_world(base)
    for stage in STAGES:
        parts = fresh(world, partial(DeepSpeedEngine, zero_stage=stage), rank, 2)
        train_step(parts, 0)
        begun = states(parts)
        # One process's checkpoint, continued by two.
        load_states(parts, load_file(folder / "plain-begun.safetensors"))
        train_step(parts, 1)
        train_step(parts, 2)
        continued = states(parts)
        if rank == 0:
            save_file(begun, folder / f"zero{stage}-begun.safetensors")
            save_file(continued, folder / f"zero{stage}-continued.safetensors")
        parts.student.module.bank.detach()
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    parts = fresh(load_world(base), PlainEngine)
    train_step(parts, 0)
    save_file(states(parts), folder / "plain-begun.safetensors")
    train_step(parts, 1)
    train_step(parts, 2)
    save_file(states(parts), folder / "plain-continued.safetensors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (base, folder, port), nprocs=2)
    return folder


def difference(expected: dict, found: dict, start: dict, kind: str) -> float:
    """How far `found` is off, as a share of how far training has moved: 1 is all of it."""
    names = [name for name in expected if name.startswith(kind)]
    off = torch.cat([(found[n] - expected[n]).flatten() for n in names]).norm()
    moved = torch.cat([(expected[n] - start[n]).flatten() for n in names]).norm()
    return float(off / moved)


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_train_like_one(trained: Path, stage: int) -> None:
    start = load_file(trained / "plain-begun.safetensors")
    expected = load_file(trained / "plain-continued.safetensors")
    found = load_file(trained / f"zero{stage}-continued.safetensors")
    assert found.keys() == expected.keys()
    for kind in ("slider/weight", "slider/exp_avg", "discriminator/weight"):
        share = difference(expected, found, start, kind)
        print(f"ZeRO {stage}: {kind} differs by {share:.1e} of what two steps moved")
        assert share < 5e-3, kind


@pytest.mark.parametrize("stage", STAGES)
def test_they_also_begin_alike(trained: Path, stage: int) -> None:
    """From nothing: the first gradients, for Adam's first step inflates their rounding errors."""
    expected = load_file(trained / "plain-begun.safetensors")
    found = load_file(trained / f"zero{stage}-begun.safetensors")
    zero = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    assert difference(expected, found, zero, "slider/exp_avg") < 0.05
    assert difference(expected, found, zero, "discriminator/exp_avg") < 0.2
