"""A base's diffusers folder: what it says of itself, whether it is whole, and reading its parts.

Nothing is ever downloaded here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from bs_ray.models.base import BaseNotFound
from bs_ray.models.identity import read_header
from bs_ray.models.layout import NETWORKS, Weights, parts_of, weights_of

# The libraries' own progress bars would garble those of this package.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


def model_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json. Raises BaseNotFound where there is none that can be read."""
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseNotFound(
            f"base: got {folder}, which has no model_index.json that names its pipeline "
            f"({type(error).__name__}); expected `tiny`, `tiny-flow`, `tiny-photo`, a diffusers "
            "folder, a hub id such as stabilityai/stable-diffusion-xl-base-1.0, s3://bucket/prefix "
            "or a .safetensors file of SDXL"
        ) from None
    return index


def pipeline_class(folder: Path) -> str:
    """The name of the diffusers pipeline in the folder's model_index.json. Raises BaseNotFound."""
    return str(model_index(folder)["_class_name"])


def check_whole(folder: Path) -> None:
    """Raise BaseNotFound unless every network of the folder has its weights, in safetensors files
    that are whole, and every tokenizer knows words. Takes a fraction of a second."""
    index = model_index(folder)
    for part in parts_of(index):
        if part in NETWORKS and (folder / part).is_dir():
            for path in part_files(folder / part):
                read_header(path)
        elif (folder / part).is_dir():
            kind = getattr(transformers, index[part][1], transformers.AutoTokenizer)
            read_tokenizer(kind, folder / part)


def part_files(folder: Path) -> list[Path]:
    """The files with a network's weights. Raises BaseNotFound."""
    weights = _weights(folder)
    if weights.index:
        named = json.loads((folder / weights.index).read_text())["weight_map"].values()
        if missing := sorted(set(named) - set(weights.files)):
            raise BaseNotFound(
                f"base: got {folder}, which lacks {missing[0]}; expected every file that "
                f"{weights.index} names. Copy or download it again"
            )
    return [folder / name for name in weights.files]


def _weights(folder: Path) -> Weights:
    return weights_of(os.listdir(folder), str(folder))


def read_tokenizer(kind: Any, folder: Path) -> Any:
    """A tokenizer of the class `kind`. Raises BaseNotFound for one that knows no words.

    Where the vocabulary is missing, transformers makes up an empty one without a word.
    """
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a photo of a person", add_special_tokens=False).input_ids
        known = bool(ids) and tokenizer.unk_token_id not in ids
        problem = "" if known else "whose vocabulary does not know `a photo of a person`"
    except Exception as error:  # each class of tokenizers has errors of its own
        problem = f"which cannot be read ({type(error).__name__})"
    if problem:
        raise BaseNotFound(
            f"base: got {folder}, {problem}; expected a tokenizer with its vocabulary "
            "(tokenizer.json, vocab.json and merges.txt, or spiece.model). Copy or download it "
            "again"
        )
    return tokenizer


def need_parts(folder: Path, parts: Sequence[str], what: str, repo: str) -> None:
    """Raise BaseNotFound unless the folder has every part.

    what: what the folder should have been. repo: the repository of such a folder.
    """
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise BaseNotFound(
            f"base: got {folder}, which lacks {', '.join(missing)}; expected {what}. Use `tiny`, "
            f"or fetch one first: bs-ray bases fetch {repo}"
        )


def read_part(part_class: Any, folder: Path, dtype: torch.dtype, device: str | torch.device) -> Any:
    """One network of the folder, frozen and in evaluation mode.

    On the meta device the network has shapes and no numbers, and needs no weight files.
    """
    if torch.device(device).type == "meta":
        # The `to` of diffusers would warn.
        shapes = nn.Module.to(shapes_of(part_class, folder), dtype)
        return shapes.eval().requires_grad_(False)
    network = part_class.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        variant=_weights(folder).variant or None,
    )
    return network.to(device).eval().requires_grad_(False)


def shapes_of(part_class: Any, folder: Path) -> Any:
    """A network on the meta device, by its config alone."""
    with torch.device("meta"):
        if hasattr(part_class, "load_config"):  # diffusers
            return part_class.from_config(part_class.load_config(folder, local_files_only=True))
        return part_class(part_class.config_class.from_pretrained(folder, local_files_only=True))


def clip_tokens(tokenizer: Any) -> int:
    """How many tokens of a prompt CLIP reads, its first and its last one left out."""
    count: int = tokenizer.model_max_length - 2
    return count


def token_ids(tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    """Token ids int64 [B, length], padded or cut to that length."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The settings of the folder's scheduler; empty where it has none."""
    file = folder / "scheduler" / "scheduler_config.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def zero_for_empty(folder: Path) -> bool:
    """Whether the pipeline takes zeros for the empty prompt; not where no index says so."""
    if not (folder / "model_index.json").is_file():
        return False
    return bool(model_index(folder).get("force_zeros_for_empty_prompt", True))
