"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Such a torchvision cannot load its compiled operators, and then `import torchvision` dies with
"operator torchvision::nms does not exist", taking transformers, peft, diffusers and lpips with it.
None of them calls the operators here: it is enough that their schemas exist. The schemas are
defined when torchvision is first looked for, so that `import bs_ray` itself imports no torch, and
only where the real operators do not load. Every Ray worker that unpickles something of ours
imports `bs_ray` first, and so passes through here.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: Any = None  # a torch.library.Library takes its schemas along when it is collected


class _Guard(MetaPathFinder):
    """Runs `define_missing` just before torchvision is first imported, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = PathFinder.find_spec("torchvision", path)
        if spec is not None and spec.origin is not None:
            define_missing(Path(spec.origin).parent)
        return spec


def install() -> None:
    """Set the guard up; cheap, and harmless when torchvision is absent or already imported."""
    if "torchvision" in sys.modules or any(isinstance(f, _Guard) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Guard())


def define_missing(package: Path) -> list[str]:
    """Define the schemas that torchvision's own import needs; returns the names defined.

    `package` is torchvision's folder. Returns [] where its compiled operators load.
    """
    global _library
    import torch

    if _real_operators_load(package):
        return []
    missing = [n for n in _SCHEMAS if not hasattr(torch.ops.torchvision, n)]
    if missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            _library.define(_SCHEMAS[name])
    return missing


def _real_operators_load(package: Path) -> bool:
    import torch

    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))  # loading it a second time is a no-op
        except OSError:
            continue
        return True
    return False
