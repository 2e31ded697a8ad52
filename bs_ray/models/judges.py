"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bs_ray.models.base import BaseNotFound

JUDGE_PX = 64


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _Level(nn.Module):
    """Halve the resolution, then one residual block."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.block = nn.Sequential(
            _norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            _norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.block(x)


class JudgeNet(nn.Module):
    """A small convolutional network: [B, 3, 64, 64] in [-1, 1] -> [B, outputs], raw numbers."""

    def __init__(self, outputs: list[str], widths: tuple[int, ...] = (32, 48, 96, 128)):
        super().__init__()
        self.outputs = list(outputs)
        self.widths = tuple(widths)
        self.levels = nn.ModuleList(
            _Level(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True)
        )
        last = widths[-1] * (JUDGE_PX // 2 ** len(widths)) ** 2
        self.head = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(last, 128), nn.SiLU())
        self.out = nn.Linear(128, len(outputs))

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations after each level, coarse last: [B, widths[i], 32 / 2^i, 32 / 2^i]."""
        x, found = images, []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.head(self.features(images)[-1]))

    def save(self, path: Path) -> None:
        """One fp16 safetensors file; names and widths stand in its header."""
        card = {"outputs": json.dumps(self.outputs), "widths": json.dumps(self.widths)}
        weights = {k: v.detach().half().contiguous() for k, v in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, metadata=card)

    @classmethod
    def load(cls, path: Path) -> JudgeNet:
        """Read what `save` wrote; float32, frozen, in evaluation mode."""
        with safe_open(str(path), "pt") as file:
            card = file.metadata()
            weights = {key: file.get_tensor(key).float() for key in list(file.keys())}
        net = cls(json.loads(card["outputs"]), tuple(json.loads(card["widths"])))
        net.load_state_dict(weights)
        return net.eval().requires_grad_(False)


def _resize(images: Tensor) -> Tensor:
    if images.shape[-2:] == (JUDGE_PX, JUDGE_PX):
        return images
    return F.interpolate(images, (JUDGE_PX, JUDGE_PX), mode="bilinear", antialias=True)


class AttributeReader:
    """Reads a face's attributes, each in [0, 1]: the ground truth of the tiny world's metrics."""

    def __init__(self, net: JudgeNet):
        self.net = net
        self.names = tuple(net.outputs)

    def read(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, len(names)], about [0, 1]; not clipped, so moves show."""
        return self.net(_resize(images))


class Perceptual:
    """LPIPS-like distance (Zhang et al. 2018): unit-normalised features, squared difference."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def features(self, images: Tensor, native: bool = False) -> list[Tensor]:
        """The feature maps that distances are taken in, each unit length over its channels.

        native: at the pictures' own size instead of the judge's.
        """
        seen = images if native else _resize(images)
        return [F.normalize(f, dim=1, eps=1e-6) for f in self.net.features(seen)]

    def distance(self, images: Tensor, others: Tensor, native: bool = False) -> Tensor:
        """How different two pictures look, per pair: [B], 0 for equal pictures."""
        pairs = zip(self.features(images, native), self.features(others, native), strict=True)
        return torch.stack([((a - b) ** 2).sum(1).mean((1, 2)) for a, b in pairs]).sum(0)


class Identity:
    """Embeds a face so that the same person's pictures lie close (cosine)."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> unit vectors [B, D]."""
        return F.normalize(self.net(_resize(images)), dim=1)

    def similarity(self, images: Tensor, others: Tensor) -> Tensor:
        """Cosine similarity per pair: [B] in [-1, 1]."""
        return (self.embed(images) * self.embed(others)).sum(1)


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


@dataclass(frozen=True)
class Judging:
    """The judges at hand for any base; each may be absent."""

    clip: ClipScore | None = None
    perceptual: Perceptual | None = None
    identity: Identity | None = None

    @property
    def absent(self) -> list[str]:
        """Names of those that are not at hand."""
        return [name for name, judge in vars(self).items() if judge is None]


def find_judges(base: Path) -> Judging:
    """Those in `<base>/judges`: a CLIP folder `clip`, `perceptual` and `identity` .safetensors.

    The tiny bases bring all three. Beside another base, put any transformers CLIP there.
    """
    folder = base / "judges"

    def network(name: str) -> JudgeNet | None:
        file = folder / f"{name}.safetensors"
        return JudgeNet.load(file) if file.is_file() else None

    clip = ClipScore.load(folder / "clip") if (folder / "clip/config.json").is_file() else None
    perceptual, identity = network("perceptual"), network("identity")
    return Judging(
        clip,
        Perceptual(perceptual) if perceptual else None,
        Identity(identity) if identity else None,
    )


@dataclass(frozen=True)
class Judges:
    """The tiny world's judges."""

    reader: AttributeReader
    perceptual: Perceptual
    identity: Identity
    clip: ClipScore

    @classmethod
    def load(cls, base: Path) -> Judges:
        """Read them from `<base>/judges`. Raises BaseNotFound where they are missing."""
        folder = base / "judges"
        if not (folder / "reader.safetensors").is_file():
            raise BaseNotFound(
                f"judges: got {folder}, which holds none; expected the tiny base's judge networks. "
                "Use base `tiny`, or run `bs-ray tiny build`"
            )
        nets = {
            n: JudgeNet.load(folder / f"{n}.safetensors")
            for n in ("reader", "perceptual", "identity")
        }
        return cls(
            AttributeReader(nets["reader"]),
            Perceptual(nets["perceptual"]),
            Identity(nets["identity"]),
            ClipScore.load(folder / "clip"),
        )


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output
