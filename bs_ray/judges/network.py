"""The network of the tiny world's judges, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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
    """A small convolutional network: [B, 3, 64, 64] in [-1, 1] -> [B, len(outputs)]."""

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
        """Write one safetensors file in fp16, with names and widths in its header."""
        card = {"outputs": json.dumps(self.outputs), "widths": json.dumps(self.widths)}
        weights = {k: v.detach().half().contiguous() for k, v in self.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, metadata=card)

    @classmethod
    def load(cls, path: Path) -> JudgeNet:
        """Read what `save` wrote, as a frozen float32 network in evaluation mode."""
        with safe_open(str(path), "pt") as file:
            card = file.metadata()
            weights = {key: file.get_tensor(key).float() for key in list(file.keys())}
        net = cls(json.loads(card["outputs"]), tuple(json.loads(card["widths"])))
        net.load_state_dict(weights)
        return net.eval().requires_grad_(False)


def resized(images: Tensor) -> Tensor:
    """The pictures at the judges' size, 64 x 64."""
    if images.shape[-2:] == (JUDGE_PX, JUDGE_PX):
        return images
    return F.interpolate(images, (JUDGE_PX, JUDGE_PX), mode="bilinear", antialias=True)
