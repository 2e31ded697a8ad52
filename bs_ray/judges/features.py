"""Networks of features by their folder, as transformers saves them: DINOv2 and its like."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bs_ray.judges.judge import Card, Embedding, JudgeUnavailable, Pictures, Subject, digest

MAX_PX = 1024
"""Larger pictures are resized to this before the folder's own processor sees them."""


def weights_of(folder: Path, what: str) -> Path:
    """The weight file of a folder. Raises JudgeUnavailable where it, or a config, is missing."""
    file = folder / "model.safetensors"
    if not file.is_file():
        file = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file() or not file.is_file():
        raise JudgeUnavailable(
            f"{what}: got {folder}, which has no config.json beside a model.safetensors; expected "
            "a folder of transformers: hf download REPOSITORY --local-dir FOLDER"
        )
    return file


def read_network(folder: Path) -> Any:
    """The folder's network, float32, frozen and in evaluation mode."""
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return network.float().eval().requires_grad_(False)


class Processor:
    """The folder's own preparation of pictures."""

    def __init__(self, folder: Path):
        self._folder = folder

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        # Pillow's resampling: the same numbers with and without torchvision.
        return AutoImageProcessor.from_pretrained(
            self._folder, local_files_only=True, backend="pil"
        )

    def __call__(self, pictures: Pictures) -> Tensor:
        """float32 [K, 3, h, w]."""
        images = [Image.fromarray(picture) for picture in pictures]
        values: Tensor = self._processor(images=images, return_tensors="pt").pixel_values
        return values


class Features(Embedding):
    """The network's pooled output, or its first token; cosine distance."""

    needs_face = False

    def __init__(self, folder: Path):
        """Raises JudgeUnavailable for a folder that is none."""
        name = f"features-{folder.name}"
        file = weights_of(folder, name)
        if not (folder / "preprocessor_config.json").is_file():
            raise JudgeUnavailable(
                f"{name}: got {folder}, which has no preprocessor_config.json; expected the file "
                "that says how this network sees pictures"
            )
        self._folder, self._prepare = folder, Processor(folder)
        self.card = Card(
            name, digest(file), "unknown: it is the folder's", "1 less the cosine of features"
        )

    @cached_property
    def _net(self) -> Any:
        return read_network(self._folder)

    @torch.no_grad()
    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge."""
        found = self._net(pixel_values=self._prepare(subject.seen(pictures, MAX_PX)))
        pooled = getattr(found, "pooler_output", None)
        features = found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return features.numpy().astype(np.float32)
