"""Training one stage of a recipe: when to step, average, save and show. It resumes anywhere."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from bs_ray.tiny.stage import Stage, to_uint8

_SAVE_SECONDS = 60
_REPORT_EVERY = 10
_WARMUP_STEPS = 50
_TIMED = range(20, 60)
"""The steps that tell how long one takes; those before them warm the device up."""

Report = Callable[[str, int, int, dict[str, float]], None]
"""report(stage, step, steps, numbers): called every few steps on rank 0."""


def fit(
    stage: Stage, work: Path, report: Report, steps: int | None = None, seconds: float | None = None
) -> None:
    """Train `stage` to its end and export it. Resumes from `work` where it was stopped.

    Under torch.distributed every rank has randomness of its own, and gradients are averaged.

    seconds: how long to train, in place of `steps`. The first steps are timed, and as many are
    taken as fit. The number is kept, so that a resumed run keeps its schedule.
    """
    rank, world = _rank()
    parameters = [p for p in stage.net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=stage.lr,
        weight_decay=1e-2,
        betas=(0.9, 0.99),
        fused=stage.device.type == "cuda",
    )
    average = {n: p.detach().clone() for n, p in stage.net.state_dict().items()}
    state = work / f"{stage.name}.safetensors"
    done, planned = _restore(state, stage, optimizer, average)
    steps = planned or steps or stage.steps
    seed, saved = zlib.crc32(stage.name.encode()) << 24, time.monotonic()
    started = saved
    stage.net.train()
    step = done
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * _schedule(step, steps)
        rng = torch.Generator(stage.device).manual_seed(seed + step * world + rank)
        with torch.autocast(stage.device.type, torch.bfloat16):
            parts = stage.loss(rng)
        optimizer.zero_grad()
        parts["loss"].backward()
        if world > 1:
            for gradient in [p.grad for p in parameters if p.grad is not None]:
                dist.all_reduce(gradient)
                gradient /= world
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _update_average(average, stage, step)
        step += 1
        if seconds and not planned and step == _TIMED.stop:
            float(parts["loss"].detach())  # wait for the device
            each = (time.monotonic() - started) / len(_TIMED)
            planned = steps = max(step + 1, int(seconds / each))
        elif seconds and step == _TIMED.start:
            float(parts["loss"].detach())
            started = time.monotonic()
        if step % _REPORT_EVERY == 0 or step == steps:
            numbers = {k: float(v.detach()) for k, v in parts.items()}
            if not math.isfinite(numbers["loss"]):
                raise FloatingPointError(f"{stage.name}: loss is not finite by step {step}")
            if rank == 0:
                report(stage.name, step, steps, numbers)
                if time.monotonic() - saved > _SAVE_SECONDS or step == steps:
                    _save(state, stage, optimizer, average, step, steps)
                    _show(stage, average, work / "sheets" / f"{stage.name}-{step:05d}.png")
                    saved = time.monotonic()
    if rank == 0:
        with _averaged(stage, average):
            stage.export()


def finished(name: str, work: Path) -> bool:
    """Whether stage `name` has been exported."""
    return (work / f"{name}.done").exists()


def mark_finished(name: str, work: Path) -> None:
    """Mark stage `name` as exported."""
    (work / f"{name}.done").touch()


def _rank() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _schedule(step: int, steps: int) -> float:
    """The learning rate's factor: a linear warm-up, then a cosine down to a fiftieth."""
    if step < _WARMUP_STEPS:
        return (step + 1) / _WARMUP_STEPS
    share = (step - _WARMUP_STEPS) / max(1, steps - _WARMUP_STEPS)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2


def _update_average(average: dict[str, Tensor], stage: Stage, step: int) -> None:
    decay = min(stage.ema_decay, (step + 1) / (step + 10))
    own = [v.detach() for v in stage.net.state_dict().values() if v.is_floating_point()]
    kept = [v for v in average.values() if v.is_floating_point()]
    torch._foreach_lerp_(kept, own, 1 - decay)


@contextmanager
def _averaged(stage: Stage, average: dict[str, Tensor]) -> Iterator[None]:
    """The stage's network with its averaged weights, in evaluation mode."""
    own = {n: p.detach().clone() for n, p in stage.net.state_dict().items()}
    stage.net.load_state_dict(average)
    stage.net.eval()
    try:
        yield
    finally:
        if (
            next(iter(stage.net.parameters())).dtype == torch.float32
        ):  # exported networks are halved
            stage.net.load_state_dict(own)
            stage.net.train()


def _save(
    path: Path,
    stage: Stage,
    optimizer: Optimizer,
    average: dict[str, Tensor],
    step: int,
    steps: int,
) -> None:
    flat = {f"net/{n}": p.detach().contiguous().clone() for n, p in stage.net.state_dict().items()}
    flat |= {f"average/{n}": p.contiguous().clone() for n, p in average.items()}
    names = [n for n, p in stage.net.named_parameters() if p.requires_grad]
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            flat[f"{key}/{name}"] = optimizer.state[parameter][key].contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(flat, part, metadata={"step": str(step), "steps": str(steps)})
    os.replace(part, path)


def _restore(
    path: Path, stage: Stage, optimizer: Optimizer, average: dict[str, Tensor]
) -> tuple[int, int]:
    """Load what `_save` wrote. Returns the steps done and planned; 0 and 0 where there is none."""
    if not path.exists():
        return 0, 0
    with safe_open(str(path), "pt", device=str(stage.device)) as file:
        card = file.metadata()
        flat = {key: file.get_tensor(key) for key in list(file.keys())}
    step = int(card["step"])

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.partition("/")[2]: v for k, v in flat.items() if k.startswith(f"{prefix}/")}

    stage.net.load_state_dict(under("net"))
    average.update(under("average"))
    first, second = under("exp_avg"), under("exp_avg_sq")
    names = [n for n, p in stage.net.named_parameters() if p.requires_grad]
    fused, on = optimizer.param_groups[0]["fused"], stage.device
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=on if fused else "cpu"),
            "exp_avg": first[name],
            "exp_avg_sq": second[name],
        }
    return step, int(card.get("steps", 0))


def _show(stage: Stage, average: dict[str, Tensor], path: Path) -> None:
    with _averaged(stage, average):
        picture = stage.sheet()
    if picture is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(picture).permute(1, 2, 0).cpu().numpy()).save(path)
