"""Which files of a diffusers folder hold a base: the layouts that people have, told by names alone.

A part's weights lie in one file or in shards with an index, in full precision, as a variant
(`*.fp16.safetensors`), or both. So the names tell what to read here and what to download there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bs_ray.models.base import BaseNotFound

NETWORKS = ("transformer", "unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_OPTIONAL = ("text_encoder_3", "tokenizer_3")
"""Parts that an index may name and a folder leave out: SD3 works without T5."""
WHOLE_FIRST, SMALL_FIRST = ("", "fp16", "bf16"), ("fp16", "bf16", "")
"""Which variant is preferred where there are several: in reading, and in downloading."""

_STEM = r"(?:diffusion_pytorch_model|model)"
_WEIGHTS = re.compile(
    rf"{_STEM}(?:\.(\w+))?(?:-(\d{{5}})-of-(\d{{5}}))?(?:\.(\w+))?\.safetensors", re.ASCII
)
_INDEX = re.compile(rf"{_STEM}(?:\.(\w+))?\.safetensors\.index(?:\.(\w+))?\.json", re.ASCII)
_PICKLED = re.compile(r".+\.(bin|pt|pth|ckpt|msgpack|h5)")
_SMALL = re.compile(r".+\.(json|txt|model|jinja)")
"""A part's settings, and a tokenizer's vocabulary."""
_VOCABULARY = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})
"""What a tokenizer reads its vocabulary from: any of these."""
_BESIDE = re.compile(r"model_index\.json|card\.json|scheduler/[^/]+\.json|judges/.+")


@dataclass(frozen=True)
class Weights:
    """A part's weights in one precision."""

    files: tuple[str, ...]
    """The safetensors files, in order."""
    variant: str
    """Such as "fp16"; "" for the files without one."""
    index: str | None
    """The file that says which tensor lies in which shard."""


def weights_of(names: Iterable[str], where: str, first: Sequence[str] = WHOLE_FIRST) -> Weights:
    """The weights to use among the file names of a part's folder.

    first: variants in the order of preference; others come after them. Raises BaseNotFound, which
    names `where`, for a part without whole weights in safetensors.
    """
    names = sorted(names)
    single: dict[str, str] = {}
    shards: dict[str, list[str]] = {}
    missing: dict[str, int] = {}
    for name in names:
        if not (found := _WEIGHTS.fullmatch(name)):
            continue
        variant = found[1] or found[4] or ""
        if found[2] is None:
            single[variant] = name
        else:
            shards.setdefault(variant, []).append(name)
            missing[variant] = int(found[3]) - len(shards[variant])
    indices = {(m[1] or m[2] or ""): m[0] for name in names if (m := _INDEX.fullmatch(name))}
    whole = {v: Weights((name,), v, None) for v, name in single.items()}
    for variant in shards.keys() & indices.keys() - whole.keys():
        if not missing[variant]:
            whole[variant] = Weights(tuple(shards[variant]), variant, indices[variant])
    if whole:
        return whole[min(whole, key=lambda v: (first.index(v) if v in first else len(first), v))]
    raise BaseNotFound(f"base: got {where}, {_lack(names, shards, indices)}")


def _lack(names: Sequence[str], shards: Mapping[str, object], indices: Mapping[str, object]) -> str:
    """What is wrong with a folder that has no weights to read."""
    if shards or indices:
        return (
            f"with {sum(name.endswith('.safetensors') for name in names)} files of weights that "
            "its index does not make whole; expected every shard and the index. Copy or download "
            "it again"
        )
    if pickled := [name for name in names if _PICKLED.fullmatch(name)]:
        return (
            f"whose weights are {pickled[0]} alone; expected safetensors, since other files may "
            "run code. Take a revision with .safetensors, or save it again in diffusers with "
            "save_pretrained(FOLDER, safe_serialization=True)"
        )
    return "without weights; expected a .safetensors file. Copy or download it again"


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The networks and tokenizers that a model_index.json names, and that are used here."""
    return [part for part in (*NETWORKS, *TOKENIZERS) if (index.get(part) or [None])[0]]


def used_files(index: Mapping[str, Any], names: Iterable[str], where: str) -> list[str]:
    """Of the files below a base, those that are used: configs, tokenizers, the scheduler, and each
    network's weights in one precision, the smaller one where there are several.

    Raises BaseNotFound, which names `where`, for a part that is missing or has no safetensors.
    """
    names = sorted(names)
    wanted = [name for name in names if _BESIDE.fullmatch(name)]
    for part in parts_of(index):
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{part}/")]
        small = [file for file in inside if _SMALL.fullmatch(file) and "/" not in file]
        if not inside and part in _OPTIONAL:
            continue
        if part in NETWORKS:
            whole = "config.json" in small
            weights = weights_of(inside, f"{where}/{part}", SMALL_FIRST) if whole else None
            small = [file for file in small if not _INDEX.fullmatch(file)]
            if weights:
                small += [*weights.files, *([weights.index] if weights.index else [])]
        else:
            whole = any(files <= {*small} for files in _VOCABULARY)
        if not whole:
            raise BaseNotFound(
                f"base: got {where}, whose {part} is missing or not whole; expected every part "
                "that its model_index.json names, with its config or vocabulary. Copy it again, "
                "or take another base"
            )
        wanted += [f"{part}/{file}" for file in small]
    return sorted(wanted)
