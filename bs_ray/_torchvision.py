"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Such a torchvision cannot load its compiled operators. `import torchvision` then fails with
"operator torchvision::nms does not exist", and with it transformers, peft, diffusers and lpips.
None of them calls the operators here, so it is enough that their schemas exist. The schemas are
defined only where the real operators do not load, and only when torchvision is first imported, so
that `import bs_ray` itself imports no torch. A Ray worker imports `bs_ray` before it unpickles
anything of this package, and so gets the schemas as well.
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
_library: Any = None  # kept, since a torch.library.Library that is freed removes its schemas


class _SchemaFinder(MetaPathFinder):
    """Runs `define_missing` before the first import of torchvision, and then removes itself."""

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
    """Install the finder. Does nothing where torchvision is imported already."""
    if "torchvision" in sys.modules or any(isinstance(f, _SchemaFinder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _SchemaFinder())


def define_missing(package: Path) -> list[str]:
    """Define the schemas that the import of torchvision needs. Returns the names defined.

    package: torchvision's folder. Where its compiled operators load, nothing is defined.
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
            torch.ops.load_library(str(library))  # loading it a second time does nothing
        except OSError:
            continue
        return True
    return False
