"""What a base is, for people: its family, parts, precision, size and id; which bases are here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs_ray.models import EMBEDDED, base_folder, identify_base
from bs_ray.models.folder import model_index, part_files
from bs_ray.models.identity import read_header
from bs_ray.models.layout import NETWORKS, parts_of
from bs_ray.models.sources import hub, kind_of
from bs_ray.models.sources.cache import cache_folder

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def described(base: str) -> dict[str, Any]:
    """`base`, `source`, `folder`, `id`, `family`, `pipeline`, `parts`, `dtype`, `bytes`.

    A part has its `dtype`, `bytes`, `parameters` and `files`; the whole has the denoiser's dtype.
    Raises BaseNotFound as `identify_base`.
    """
    identity, folder = identify_base(base), base_folder(base)
    index = model_index(folder)
    parts = {
        part: _part(folder / part)
        for part in parts_of(index)
        if part in NETWORKS and (folder / part).is_dir()
    }
    denoiser = parts.get("unet") or parts["transformer"]
    return {
        "base": base,
        "source": "embedded" if base in EMBEDDED else kind_of(base),
        "folder": str(folder),
        "id": identity.id,
        "family": identity.family,
        "pipeline": index["_class_name"],
        "dtype": denoiser["dtype"],
        "bytes": sum(part["bytes"] for part in parts.values()),
        "parts": parts,
    }


def _part(folder: Path) -> dict[str, Any]:
    files, dtypes, parameters = part_files(folder), Counter[str](), 0
    for file in files:
        for about in read_header(file)[1].values():
            count = math.prod(about["shape"])
            dtypes[about["dtype"]] += count
            parameters += count
    [(most, _)] = dtypes.most_common(1)
    return {
        "dtype": _DTYPES.get(most, most),
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": parameters,
        "files": [file.name for file in files],
    }


def here() -> Iterator[str]:
    """What `base:` may be without a download: embedded bases, the hub's cache, this one's cache."""
    yield from EMBEDDED
    yield from hub.kept()
    for index in sorted(cache_folder().glob("*/model_index.json")):
        yield str(index.parent)
