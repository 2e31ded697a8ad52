"""Imports flow one way, and each outside library has one doorway."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bs_ray"

# Right may import left. Rooms of one row never import each other, but for the first, the last, and
# the pairs in ALSO.
ROWS: list[set[str]] = [
    {
        "",
        "_torchvision",
        "config",
        "concept_sliders",
        "storage",
        "seaweed",
        "raysession",
        "progress",
    },
    {"models", "data"},
    {"sliders", "tiny"},
    {"editing"},
    {"train", "batch", "editone", "serve", "evaluate"},
    {"cli", "demo", "doctor", "submit", "bench", "__main__"},
]
FREE_ROWS = {0, len(ROWS) - 1}
# Rooms that stay further left than their place in a row would allow. (serve does read data.decode:
# the same preprocessing everywhere is a promise.)
NEVER = {("train", "editing"), ("sliders", "data"), ("editing", "data")}

# Top-level module -> the only places that may import it. A trailing slash means the folder.
DOORWAYS = {
    "diffusers": [
        "models/",
        "tiny/",
        "sliders/formats.py",
        "bench/plain.py",
        "bench/locked.py",
        "bench/gpurows.py",
        "doctor.py",
    ],
    "deepspeed": ["train/engines.py", "doctor.py"],
    "botocore": ["storage/"],
    "boto3": ["storage/"],
    "mlflow": ["train/tracking.py"],
    "tensorboardX": ["train/tracking.py"],
    "wandb": ["train/tracking.py"],
    "s3fs": ["storage/"],
    "fsspec": ["storage/"],
    "fastapi": ["serve/", "bench/locked.py"],
    "starlette": ["serve/"],
    "ray": [
        *["data/sources.py", "train/run.py", "train/cache.py", "batch/"],
        *["raysession.py", "progress.py", "tiny/build.py"],
        *["serve/", "evaluate/run.py", "cli.py", "demo.py", "doctor.py", "submit.py", "bench/"],
    ],
}
# What these rooms must be readable and importable without.
WITHOUT = {"config": {"torch", "ray"}, "storage": {"torch", "ray"}, "seaweed": {"torch", "ray"}}
# Slow to import, so the command line loads them inside the verb that needs them.
LAZY_IN_CLI = {"torch", "ray", "diffusers", "transformers", "deepspeed"}

FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def imported(path: Path, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import; `from bs_ray.x import y` also gives bs_ray.x.y."""
    tree = ast.parse(path.read_text(), str(path))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}"


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = ["bs_ray", *path.relative_to(PACKAGE).parent.parts]
    kept = package[: len(package) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def room_named(module: str) -> str | None:
    """The room of `bs_ray.models.sdxl`; "" for the package's own names; None for other packages."""
    head, *rest = module.split(".")
    if head != "bs_ray":
        return None
    known = set().union(*ROWS) | {room_of(f) for f in FILES}
    return rest[0] if rest and rest[0] in known else ""


def row_of(room: str) -> int:
    found = [i for i, row in enumerate(ROWS) if room in row]
    assert found, f"{room!r} has no place in ROWS; say in which row it stands"
    return found[0]


def allowed(room: str, other: str) -> bool:
    if room == other or (room, other) in NEVER:
        return room == other
    here, there = row_of(room), row_of(other)
    return there < here or (there == here and here in FREE_ROWS)


@each_file
def test_imports_flow_one_way(path: Path) -> None:
    room = room_of(path)
    for line, module in imported(path):
        other = room_named(module)
        if other is not None:
            assert allowed(room, other), f"{path}:{line}: {room!r} must not import {module}"


@each_file
def test_one_doorway_per_library(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    for line, module in imported(path):
        doors = DOORWAYS.get(module.split(".")[0])
        if doors is not None:
            through = any(place == d or (d.endswith("/") and place.startswith(d)) for d in doors)
            assert through, f"{path}:{line}: import {module} only in {', '.join(doors)}"


@each_file
def test_light_rooms_stay_light(path: Path) -> None:
    forbidden = WITHOUT.get(room_of(path), set())
    for line, module in imported(path):
        assert module.split(".")[0] not in forbidden, f"{path}:{line}: no {module} here"


def test_help_is_quick() -> None:
    for name in (
        "__init__",
        "__main__",
        "_torchvision",
        "cli",
        "config",
        "concept_sliders",
        "submit",
        "doctor",
    ):
        path = PACKAGE / f"{name}.py"
        if path.is_file():
            found = {module.split(".")[0] for _, module in imported(path, top_level_only=True)}
            assert not found & LAZY_IN_CLI, f"{path}: import {found & LAZY_IN_CLI} where needed"


def test_the_rule_itself() -> None:
    assert allowed("serve", "editing") and allowed("cli", "train") and allowed("demo", "cli")
    assert allowed("seaweed", "storage") and allowed("tiny", "models")
    assert not allowed("models", "data") and not allowed("sliders", "train")
    assert not allowed("batch", "serve") and allowed("serve", "data")
    assert room_named("bs_ray.models.sdxl") == "models" and room_named("torch.nn") is None
    assert "bs_ray" not in sys.stdlib_module_names
