"""Two workers at every ZeRO stage against one plain-torch process: the same gradients and training.

The only guard against DeepSpeed training wrong in silence with two engines in one process.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from bs_ray.datasets.pool import PhotoPool
from bs_ray.judges.network import JudgeNet
from bs_ray.judges.perceptual import Perceptual
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.train.engines import DeepSpeedEngine, PlainEngine, shard_frozen
from bs_ray.train.loop import MakeEngine, assemble
from bs_ray.train.losses import Features
from bs_ray.train.step import TrainState, train_step
from tests.train.conftest import make_job, photo_rows

STAGES = (0, 1, 2, 3)
NAMES = ("slider", "discriminator")
BOUND = 1e-5
SHARE = 0.3


class Watch:
    """Makes engines that keep the gradients they step with, and look at the others' then."""

    def __init__(self, stage: int | None = None):
        self.stage = stage
        self.engines: list[Any] = []
        self.gradients: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, lr: float, betas: tuple[float, float]) -> Any:
        watch, name = self, NAMES[len(self.engines)]
        kind: Any = PlainEngine if self.stage is None else DeepSpeedEngine
        options = {} if self.stage is None else {"zero_stage": self.stage}

        class Watched(kind):
            def step(self) -> None:
                for key, gradient in self.full_gradients().items():
                    assert gradient is not None, f"{name} {key} has no gradient"
                    watch.gradients[f"{name}/{key}"] = gradient.detach().clone().contiguous()
                for other in watch.engines:
                    if other is not self:
                        watch.has_none(other, name)
                super().step()

        self.engines.append(Watched(module, lr, betas, **options))
        return self.engines[-1]

    @staticmethod
    def has_none(engine: Any, stepping: str) -> None:
        for key, parameter in engine.module.named_parameters():
            gradient = parameter.grad
            clean = gradient is None or not gradient.any()
            assert clean, f"{key} of the other engine got a gradient of the {stepping}'s loss"


def load_world(base: Path) -> tuple[DiffusionModel, Features, PhotoPool]:
    """The frozen networks in double precision.

    A gradient here is of differences between nearly equal predictions. In single precision these
    differ by 1e-3 between a batch of 4 and two of 2, by the order in which kernels add; that is
    nothing an engine does. The engines themselves stay in single precision.
    """
    torch.set_num_threads(1)
    model = load_base(str(base), dtype=torch.float64)
    net = Perceptual(JudgeNet.load(base / "judges" / "perceptual.safetensors").double())
    return model, lambda x: net.features(x.double()), PhotoPool.load(photo_rows(), model)


def fresh(world, make_engine: MakeEngine, rank: int = 0, workers: int = 1) -> TrainState:
    model, features, photos = world
    # Rank 3: tensors whose size two workers cannot share evenly.
    job = make_job(workers=workers, rank=3, alpha=3.0)
    return assemble(job, model, photos, features, make_engine, rank, workers)


def states(state: TrainState) -> dict[str, torch.Tensor]:
    assert state.adversary is not None
    engines = {"slider": state.student, "discriminator": state.adversary.engine}
    return {f"{n}/{k}": v for n, engine in engines.items() for k, v in engine.state().items()}


def load_states(state: TrainState, saved: dict[str, torch.Tensor]) -> None:
    assert state.adversary is not None
    engines = {"slider": state.student, "discriminator": state.adversary.engine}
    for name, engine in engines.items():
        own = {k.removeprefix(f"{name}/"): v for k, v in saved.items() if k.startswith(f"{name}/")}
        engine.load_state(own)


def three_steps(
    state: TrainState, watch: Watch, folder: Path, label: str, begun: Path | None
) -> None:
    """Files of the gradients of two steps and of the states; the second from `begun` if given.

    From the second step on the adversary pulls with a share of what the other losses pull.
    """
    write = save_file if state.rank == 0 else (lambda *_: None)
    train_step(state, 0)
    write(watch.gradients, folder / f"{label}-gradients0.safetensors")
    write(states(state), folder / f"{label}-begun.safetensors")
    if begun:  # one process's checkpoint, continued by two
        load_states(state, load_file(begun))
    losses = state.job.losses.model_copy(update={"adversarial": 0.0, "adversarial_share": SHARE})
    state.job = state.job.model_copy(update={"losses": losses})
    weight = train_step(state, 1)["w_adversarial"]
    (folder / f"{label}-weight-{state.rank}.json").write_text(json.dumps(weight))
    write(watch.gradients, folder / f"{label}-gradients1.safetensors")
    train_step(state, 2)
    write(states(state), folder / f"{label}-continued.safetensors")
    state.bank.detach()


def worker(rank: int, base: Path, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    world = load_world(base)
    for stage in STAGES:
        watch = Watch(stage)
        state = fresh(world, watch, rank, 2)
        if stage == 3:
            whole = {n: p.clone() for n, p in state.model.denoiser.named_parameters()}
            shard_frozen(state.model.denoiser)
        three_steps(state, watch, folder, f"zero{stage}", folder / "plain-begun.safetensors")
    # The stages come in order: the last one has the base in shards.
    shards = dict(state.model.denoiser.named_parameters())
    kept = {
        "held": sum(p.to_local().untyped_storage().nbytes() for p in shards.values()),
        "gathered": sum(gathered_bytes(m) for m in state.model.denoiser.modules()),
        "whole": sum(p.untyped_storage().nbytes() for p in whole.values()),
        "changed": [n for n, p in whole.items() if not p.equal(shards[n].full_tensor())],
    }
    (folder / f"base-{rank}.json").write_text(json.dumps(kept))
    dist.barrier()
    dist.destroy_process_group()


def gathered_bytes(module: nn.Module) -> int:
    """What a sharded module holds at this moment beside its shards."""
    if not isinstance(module, FSDPModule):
        return 0
    found = 0
    for group in module._get_fsdp_state()._fsdp_param_groups:
        for parameter in group.fsdp_params:
            gathered = [*parameter.all_gather_outputs, parameter._unsharded_param]
            storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in gathered}
            found += sum(storage.nbytes() for storage in storages.values())
    return found


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    watch = Watch()
    three_steps(fresh(load_world(base), watch), watch, folder, "plain", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (base, folder, port), nprocs=2)
    return folder


def difference(
    expected: dict[str, Tensor],
    found: dict[str, Tensor],
    kind: str,
    start: dict[str, Tensor] | None = None,
) -> float:
    """Norm of the difference over the norm of what was expected, or of its move from `start`."""
    names = [name for name in expected if name.startswith(kind)]
    off = torch.cat([(found[n] - expected[n]).flatten() for n in names]).norm()
    size = [(expected[n] - start[n] if start else expected[n]).flatten() for n in names]
    return float(off / torch.cat(size).norm())


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_have_the_gradients_of_one(
    trained: Path, stage: int, name: str, step: int
) -> None:
    expected = load_file(trained / f"plain-gradients{step}.safetensors")
    found = load_file(trained / f"zero{stage}-gradients{step}.safetensors")
    assert found.keys() == expected.keys()
    off = difference(expected, found, name)
    print(f"ZeRO {stage}, step {step}: gradients of the {name} differ by {off:.1e}")
    assert off < BOUND


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_weigh_the_adversary_like_one(trained: Path, stage: int) -> None:
    """Its pull is a share of a norm, which is that of all rows' gradient."""
    expected = json.loads((trained / "plain-weight-0.json").read_text())
    found = [json.loads((trained / f"zero{stage}-weight-{r}.json").read_text()) for r in (0, 1)]
    assert found[0] == found[1] == pytest.approx(expected, rel=BOUND)


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_train_like_one(trained: Path, stage: int) -> None:
    start = load_file(trained / "plain-begun.safetensors")
    expected = load_file(trained / "plain-continued.safetensors")
    found = load_file(trained / f"zero{stage}-continued.safetensors")
    assert found.keys() == expected.keys()
    for kind in ("slider/weight", "slider/exp_avg", "discriminator/weight"):
        share = difference(expected, found, kind, start)
        print(f"ZeRO {stage}: {kind} differs by {share:.1e} of what two steps moved")
        assert share < 5 * BOUND, kind


@pytest.mark.parametrize("rank", [0, 1])
def test_stage_3_leaves_each_worker_half_of_the_base(trained: Path, rank: int) -> None:
    found = json.loads((trained / f"base-{rank}.json").read_text())
    assert found["changed"] == []
    # A block's parameters are split by their first side, so the halves may differ by a row.
    assert found["held"] + found["gathered"] == pytest.approx(found["whole"] / 2, rel=0.02)
