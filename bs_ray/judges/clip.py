"""CLIP: how well a picture fits a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.images.pixels import images_of
from bs_ray.judges.features import MAX_PX, Processor, read_network, weights_of
from bs_ray.judges.judge import Card, Embedding, Pictures, Subject, digest
from bs_ray.judges.network import resized


class ClipScore:
    """100 x the cosine of CLIP's embeddings of a picture and a text: its `logits_per_image`."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> ClipScore:
        """Read a CLIP model from a folder in the layout of transformers."""
        from transformers import AutoTokenizer

        return cls(read_network(folder), AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def score(self, images: Tensor, text: str) -> Tensor:
        """[B, 3, H, W] in [-1, 1], of the tiny world, against one text: [B]."""
        return 100 * (self.of_pictures(resized(images)) @ self.of_texts([text]).T)[:, 0]

    @torch.no_grad()
    def of_pictures(self, inputs: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures as the network expects them."""
        return F.normalize(_pooled(self.model.get_image_features(pixel_values=inputs)), dim=1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [T, D]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(_pooled(self.model.get_text_features(**tokens)), dim=1)


class ClipJudge(Embedding):
    """A folder of transformers with a CLIP, behind the face of all judges; cosine distance."""

    needs_face = False

    def __init__(self, folder: Path, name: str = ""):
        """name: in place of `clip-<folder>`. Raises JudgeUnavailable for a folder that is none.

        Pictures go through the folder's own processor; a folder without one is the tiny world's,
        whose CLIP sees 64 px in [-1, 1].
        """
        name = name or f"clip-{folder.name}"
        file = weights_of(folder, name)
        self._folder = folder
        has_own = (folder / "preprocessor_config.json").is_file()
        self._prepare = Processor(folder) if has_own else _as_tiny
        self.card = Card(
            name,
            digest(file),
            "unknown: it is the folder's",
            "how well a picture fits a text: 100 x the cosine of embeddings",
        )

    @cached_property
    def _clip(self) -> ClipScore:
        return ClipScore.load(self._folder)

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge."""
        found = self._clip.of_pictures(self._prepare(subject.seen(pictures, MAX_PX)))
        return found.numpy().astype(np.float32)

    def scores(self, subject: Subject, pictures: Pictures, texts: Sequence[str]) -> np.ndarray:
        """See TextJudge."""
        words = self._clip.of_texts(texts).numpy().astype(np.float64)
        return 100 * self.embed(subject, pictures).astype(np.float64) @ words.T


def _as_tiny(pictures: Pictures) -> Tensor:
    return torch.cat([resized(images_of(picture)[None]) for picture in pictures])


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output
