"""CLIP: how well a picture fits a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import resized


class ClipScore:
    """100 x the cosine of CLIP's embeddings of a picture and a text: its `logits_per_image`."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> ClipScore:
        """Read a CLIP model from a folder in the layout of transformers."""
        from transformers import CLIPModel, CLIPTokenizer

        return cls(CLIPModel.from_pretrained(folder).float(), CLIPTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def score(self, images: Tensor, text: str) -> Tensor:
        """[B, 3, H, W] in [-1, 1] against one text: [B]."""
        tokens = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        pictures = F.normalize(_pooled(self.model.get_image_features(resized(images))), dim=1)
        words = F.normalize(_pooled(self.model.get_text_features(**tokens)), dim=1)
        return 100 * (pictures @ words.T)[:, 0]


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output
