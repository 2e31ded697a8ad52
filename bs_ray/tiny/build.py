"""`bs-ray tiny build`: a recipe on Ray Train, stage after stage, resumable.

`drawn` makes `tiny` and `tiny-flow` of faces that it draws, `photos` makes `tiny-photo` of
photographs. `bs_ray.tiny.photo.train` runs the second where only torch is at hand.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from rich.console import Console

from bs_ray.progress import progress
from bs_ray.ray_session import ray_session
from bs_ray.tiny import recipe as drawn
from bs_ray.tiny.loop import finished, fit, mark_finished
from bs_ray.tiny.photo import train as photo
from bs_ray.tiny.photo.album import Album
from bs_ray.tiny.photo.pack import ensure_pack
from bs_ray.tiny.stage import Stage

PICTURES = {"clean": 12_000, "cluttered": 3_000, "wild": 3_000}


@dataclass(frozen=True)
class Recipe:
    """What a base is made of, and how."""

    stages: tuple[str, ...]
    world: Callable[[Path, float], Any]
    """world(work, share) -> what the stages see; drawn into `work` where it is not there."""
    stage: Callable[[str, Any, Path], Stage]
    """stage(name, world, base) -> the stage, to be trained into the base's folder."""
    on_gpu: bool


def build(
    out: Path,
    work: Path,
    *,
    world: str = "drawn",
    faces: Sequence[Path] = (),
    smiles: Path | None = None,
    stages: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    share: float = 1.0,
    console: Console | None = None,
) -> None:
    """Train the stages into the diffusers folder `out`. The same command goes on where it stopped.

    world: one of RECIPES. faces, smiles: what the world of photos is packed from, once. stages: a
    comma list; all of them by default. work: keeps the pictures, and checkpoints and sample sheets
    of each stage. share: of every stage's steps, for a quick try. Raises ValueError for an unknown
    world or stage and for faces that are missing or not needed.
    """
    console = console or Console()
    recipe, names = _chosen(world, stages)
    if world == "photos":
        ensure_pack(faces, smiles, work / "pack", console)
    elif faces or smiles:
        raise ValueError(f"faces: got some for the world {world!r}; expected --world photos")
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    plan = {
        "world": world,
        "stages": names,
        "share": share,
        "threads": threads,
        "out": str(out.resolve()),
        "work": str(work.resolve()),
    }
    _train(plan, workers, recipe.on_gpu, console)
    console.print(f"Base: [bold]{out}[/]  Sample sheets: [bold]{work / 'sheets'}[/]")


def _train(plan: dict[str, Any], workers: int, on_gpu: bool, console: Console) -> None:
    threads, scratch = plan["threads"], Path(plan["work"]) / "ray"
    with ray_session(num_cpus=workers * threads + 1), progress(console, "Tiny base") as board:
        TorchTrainer(
            _worker,
            train_loop_config={**plan, "board": board},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=on_gpu and ray.cluster_resources().get("GPU", 0) >= workers,
                resources_per_worker={"CPU": threads},
            ),
            run_config=RunConfig(
                name=f"tiny-{os.getpid()}",  # no name to resume under: stages resume from `work`
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=2),
            ),
        ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


def _chosen(world: str, stages: str | None) -> tuple[Recipe, list[str]]:
    """The recipe, and the names of its stages that are to be trained."""
    if world not in RECIPES:
        raise ValueError(f"world: got {world!r}; expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[world]
    names = stages.split(",") if stages else list(recipe.stages)
    if unknown := set(names) - set(recipe.stages):
        raise ValueError(
            f"stages: got {', '.join(sorted(unknown))}; expected some of {', '.join(recipe.stages)}"
        )
    return recipe, names


def _worker(plan: dict) -> None:
    """What each Ray Train worker runs."""
    torch.set_num_threads(plan["threads"])
    out, work, recipe = Path(plan["out"]), Path(plan["work"]), RECIPES[plan["world"]]
    first = not dist.is_initialized() or dist.get_rank() == 0
    if not first:
        _wait_for_all()  # until it is drawn
    world = recipe.world(work, plan["share"])
    if first:
        _wait_for_all()
    for name in plan["stages"]:
        if not finished(name, work):
            stage = recipe.stage(name, world, out)
            fit(stage, work, plan["board"].report, max(10, int(stage.steps * plan["share"])))
            if first:
                mark_finished(name, work)
        _wait_for_all()


def _wait_for_all() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _drawn_world(work: Path, share: float) -> drawn.World:
    counts = {kind: max(512, int(n * share)) for kind, n in PICTURES.items()}
    counts["clean"] = max(counts["clean"], 3_000)  # the identity judge's people
    return drawn.World.load(work / "world.safetensors", seed=0, **counts)


def _album(work: Path, _: float) -> Album:
    return photo.open_album(work / "pack", get_device())


RECIPES = {
    "drawn": Recipe(drawn.STAGES, _drawn_world, drawn.build_stage, on_gpu=False),
    "photos": Recipe(photo.STAGES, _album, photo.build_stage, on_gpu=True),
}
