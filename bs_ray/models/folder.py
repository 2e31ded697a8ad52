"""A base's diffusers folder: which parts it has, reading them, and a hash of their content.

Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from bs_ray.models.base import BaseNotFound

# The libraries' own progress bars would garble those of this package.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


def pipeline_class(folder: Path) -> str:
    """The name of the diffusers pipeline in the folder's model_index.json.

    Raises BaseNotFound where there is no such file.
    """
    try:
        return str(json.loads((folder / "model_index.json").read_text())["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise BaseNotFound(
            f"base: got {folder}, which has no model_index.json that names its pipeline "
            f"({type(error).__name__}); expected `tiny`, `tiny-flow`, `tiny-photo` or a "
            "diffusers folder. Download one first: hf download "
            "stabilityai/stable-diffusion-xl-base-1.0 --local-dir FOLDER"
        ) from None


def need_parts(folder: Path, parts: Sequence[str], what: str, repo: str) -> None:
    """Raise BaseNotFound unless the folder has every part.

    what: what the folder should have been. repo: the repository of such a folder.
    """
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise BaseNotFound(
            f"base: got {folder}, which lacks {', '.join(missing)}; expected {what}. Use `tiny`, "
            f"or download one first: hf download {repo} --local-dir FOLDER"
        )


def read_part(part_class: Any, folder: Path, dtype: torch.dtype, device: str | torch.device) -> Any:
    """One network of the folder, frozen and in evaluation mode.

    On the meta device the network has shapes and no numbers, and needs no weight files.
    """
    if torch.device(device).type == "meta":
        shapes = nn.Module.to(
            _shapes(part_class, folder), dtype
        )  # the `to` of diffusers would warn
        return shapes.eval().requires_grad_(False)
    network = part_class.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return network.to(device).eval().requires_grad_(False)


def _shapes(part_class: Any, folder: Path) -> Any:
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


_HASHED = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "unet")
"""The parts that a slider depends on: the denoiser and the encoders of its prompt."""


def base_hash(folder: Path, sample_bytes: int = 1 << 16, samples: int = 64) -> str:
    """16 hex digits that name a base by the weight files of its denoiser and its text encoders.

    Large files are sampled at `samples` places, so that 5 GB take milliseconds.
    """
    digest = hashlib.sha256()
    for part in _HASHED:
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
