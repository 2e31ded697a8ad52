"""A base's id: the same however its numbers are rounded, another one for another base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bs_ray.models import EMBEDDED
from bs_ray.models.identity import base_hash, former_ids

_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": Tensor.float,
    "fp16": Tensor.half,
    "bf16": Tensor.bfloat16,
    "bf16 via fp16": lambda t: t.half().bfloat16(),
    "fp16 via bf16": lambda t: t.bfloat16().half(),
    "fp32 via fp16": lambda t: t.half().float(),
    "fp64": Tensor.double,
    "fp8 via bf16": lambda t: t.bfloat16().to(torch.float8_e4m3fn),
}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """A million numbers: of a network's size, on the limits between roundings, and so small that
    they become 0."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number in range(1000):
        scale = 10.0 ** -(number % 10)
        found[f"layer{number}.weight"] = torch.randn(32, 32, generator=generator) * scale
    ties = (torch.arange(1024.0) * 2 + 1) * 2.0**-12
    return found | {"ties.weight": torch.cat([ties[:512], -ties[:512]]).view(32, 32)}


def saved(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> str:
    """The id of a base with these tensors alone."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "unet").mkdir(parents=True)
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return base_hash(folder)


def test_no_rounding_changes_the_id(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ids = {
        name: saved(tmp_path / "b", {key: rounded(t) for key, t in tensors.items()})
        for name, rounded in _ROUNDINGS.items()
    }
    assert len(set(ids.values())) == 1, ids


@pytest.mark.parametrize("share", [1e-1, 1e-2, 1e-3, 1e-4])
def test_a_fine_tune_has_another_id(
    share: float, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """share: how far the tune moves weights, as a share of their size."""
    generator = torch.Generator().manual_seed(1)
    tuned = {
        name: t + share * t.std() * torch.randn(t.shape, generator=generator)
        for name, t in tensors.items()
    }
    turned = sum(int((tuned[n].signbit() != t.signbit()).sum()) for n, t in tensors.items())
    print(f"{share:g}: {turned} of {sum(t.numel() for t in tensors.values())} signs turned")
    assert turned > 10  # the chance that none turns is below exp(-10)
    assert saved(tmp_path / "b", tuned) != saved(tmp_path / "b", tensors)


def test_names_and_shapes_count(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    first = next(iter(tensors))
    renamed = {f"x{name}" if name == first else name: t for name, t in tensors.items()}
    reshaped = tensors | {first: tensors[first].view(16, 64)}
    ids = {saved(tmp_path / "b", some) for some in (tensors, renamed, reshaped)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("tiny", "b12a6176fa730a1f"),
        ("tiny-flow", "c08162d685f16b22"),
        ("tiny-photo", "864d0ca082b4bd6a"),
    ],
)
def test_embedded_bases_keep_the_ids_that_sliders_hold(
    name: str, known: str, tmp_path: Path
) -> None:
    folder = EMBEDDED[name]
    assert base_hash(folder) == known and former_ids(folder) == (known,)
    copy = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("judges"))
    for file in copy.rglob("*.safetensors"):
        save_file({key: t.float() for key, t in load_file(file).items()}, file)
    assert base_hash(copy) == known
