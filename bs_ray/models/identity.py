"""What names a base: an id that is the same however the base is stored.

fp32, fp16, bf16 by way of fp16, shards, one file: rounding moves every number of a network, and
whether it moves one across any limit is chance. It never moves the sign bit, not even where a
number becomes zero. So the id is a hash of the names and shapes of all tensors and of the signs of
up to 1024 of each one's numbers. A fine-tune that moves weights by a thousandth of their size turns
the signs of about three in ten thousand, which for SDXL are hundreds of those looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bs_ray.models.base import BaseNotFound
from bs_ray.models.layout import weights_of

_DECISIVE = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "unet")
"""The parts that a slider depends on: the denoiser and the encoders of its prompt."""
_LOOKED_AT = 1024
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_PREFIX = "text_model."
"""CLIP's towers are saved with it or without it, by the version of transformers."""
_LEFT_OUT = ("text_projection.weight", "lm_head.weight")
"""Saved by some versions and not by others, where the encoder does not use them."""
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}

_KEPT = {
    "228a16366ac15ffc": "b12a6176fa730a1f",
    "47e129b5a3754ecf": "c08162d685f16b22",
    "e97639df2e193378": "864d0ca082b4bd6a",
}
"""Ids of the embedded bases, which sliders, ledgers and caches of earlier versions hold."""


def base_hash(folder: Path) -> str:
    """16 hex digits that name a base by the denoiser and the text encoders of its folder.

    Reads 1024 numbers of each tensor: milliseconds, whatever the size. Parts without weights, as
    architectures have them, do not count.
    """
    found = _hashed(tuple(_decisive(folder)))
    return _KEPT.get(found, found)


def stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(file, size, time of change) of all that a base's folder holds for us."""
    for file in filter(Path.is_file, sorted([*folder.glob("*.json"), *folder.glob("*/*.*")])):
        stat = file.stat()
        yield str(file), stat.st_size, stat.st_mtime_ns


def layers_of(folder: Path, part: str) -> dict[str, Sequence[int]]:
    """Layer -> the shape of its weight, of one network of a folder."""
    found: dict[str, Sequence[int]] = {}
    for file in weights_of(os.listdir(folder / part), str(folder / part)).files:
        _, header = read_header(folder / part / file)
        found |= {
            name.removesuffix(".weight"): about["shape"]
            for name, about in header.items()
            if name.endswith(".weight")
        }
    return found


def former_ids(folder: Path) -> tuple[str, ...]:
    """The id that earlier versions gave to a folder, by the bytes and names of its files."""
    return (_hash_of_files(folder),)


@lru_cache(maxsize=64)
def _hashed(stamps: tuple[tuple[str, str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    tensors: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for part, path, _, _ in stamps:
        start, header = read_header(Path(path))
        for name, about in header.items():
            name = name.removeprefix(_PREFIX)
            if about["dtype"] in _BYTES and name not in _LEFT_OUT:
                tensors.setdefault(f"{part}/{_TIED.get(name, name)}", (path, start, about))
    with ExitStack() as stack:
        paths = {path for path, _, _ in tensors.values()}
        files = {path: stack.enter_context(open(path, "rb")) for path in paths}
        for name, (path, start, about) in sorted(tensors.items()):
            digest.update(f"{name}:{about['shape']};".encode())
            digest.update(_signs(files[path].fileno(), start, about))
    return digest.hexdigest()[:16]


def _decisive(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """(part, file, size, time of change) of all files that decide the id."""
    for part in _DECISIVE:
        if not (folder / part).is_dir():
            continue
        try:
            files = weights_of(os.listdir(folder / part), str(folder / part)).files
        except BaseNotFound:
            continue
        for file in files:
            if not (folder / part / file).is_file():  # a link to nowhere
                continue
            stat = (folder / part / file).stat()
            yield part, str(folder / part / file), stat.st_size, stat.st_mtime_ns


def _signs(file: int, start: int, about: dict[str, Any]) -> bytes:
    """The sign bits of a tensor's middle numbers: the top bit of each one's last byte."""
    size, count = _BYTES[about["dtype"]], math.prod(about["shape"])
    looked_at = min(count, _LOOKED_AT)
    first = start + about["data_offsets"][0] + (count - looked_at) // 2 * size
    numbers = np.frombuffer(os.pread(file, looked_at * size, first), np.uint8)
    return np.packbits(numbers[size - 1 :: size] >> 7).tobytes()


def read_header(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where a safetensors file's numbers begin, and what it says of each tensor.

    Raises BaseNotFound for a file that is none, or is not whole.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if length + 8 > size:
                raise ValueError("its header is cut off")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((about["data_offsets"][1] for about in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size:,} bytes instead of {8 + length + end:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseNotFound(
            f"base: got {path}, which is no whole safetensors file ({error}); expected one. Copy "
            "or download it again"
        ) from None
    return 8 + length, header


def _hash_of_files(folder: Path, sample_bytes: int = 1 << 16, samples: int = 64) -> str:
    digest = hashlib.sha256()
    for part in _DECISIVE:
        for file in sorted((folder / part).glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{part}/{file.name}:{size}".encode())
            with file.open("rb") as stream:
                if size <= sample_bytes * samples:
                    digest.update(stream.read())
                    continue
                for index in range(samples):
                    stream.seek((size - sample_bytes) * index // (samples - 1))
                    digest.update(stream.read(sample_bytes))
    return digest.hexdigest()[:16]
