"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import _resize


class ClipScore:
    """CLIP's image-text agreement, 100 x cosine (`logits_per_image` of the published protocol)."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> ClipScore:
        """Any transformers CLIP folder: the tiny one or openai/clip-vit-base-patch32 on disk."""
        from transformers import CLIPModel, CLIPTokenizer

        return cls(CLIPModel.from_pretrained(folder).float(), CLIPTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def score(self, images: Tensor, text: str) -> Tensor:
        """[B, 3, H, W] in [-1, 1] against one text: [B]."""
        tokens = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        pictures = F.normalize(_pooled(self.model.get_image_features(_resize(images))), dim=1)
        words = F.normalize(_pooled(self.model.get_text_features(**tokens)), dim=1)
        return 100 * (pictures @ words.T)[:, 0]


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output
