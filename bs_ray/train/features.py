"""The feature space phi of the perceptual loss (Eq 7), as a function of images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet
from bs_ray.judges.perceptual import Perceptual
from bs_ray.models.base import BaseNotFound
from bs_ray.train.losses import Features

VGG16_FILE = "vgg16-397923af.pth"
"""torchvision's ImageNet VGG16, as torch.hub names its download."""
_VGG16_LEVELS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3, as in LPIPS
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_features(folder: Path, device: str | torch.device) -> Features:
    """The base's own perceptual network where it has one (the tiny bases do), else VGG16.

    Raises BaseNotFound where neither is at hand. Nothing is downloaded.
    """
    judge = folder / "judges" / "perceptual.safetensors"
    if judge.is_file():
        return Perceptual(JudgeNet.load(judge).to(device)).features
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE
    if not weights.is_file():
        raise BaseNotFound(
            f"perceptual loss: got neither {judge} nor {weights}; expected the weights of VGG16. "
            "Call torchvision.models.vgg16(weights='DEFAULT') once where there is a network, or "
            "set losses.perceptual=0"
        )
    return _vgg16(weights, device)


def untrained_features(folder: Path, device: str | torch.device) -> Features:
    """`load_features` with random weights for VGG16, to measure what it costs, not to train."""
    own = (folder / "judges").is_dir()
    return load_features(folder, device) if own else _vgg16(None, device)


def _vgg16(path: Path | None, device: str | torch.device) -> Features:
    from torchvision.models import vgg16

    with torch.device(device):
        net = vgg16(weights=None)
    if path:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    # In-place ReLUs would overwrite the maps that gradients need.
    layers = [
        torch.nn.ReLU() if isinstance(layer, torch.nn.ReLU) else layer
        for layer in net.features[: _VGG16_LEVELS[-1] + 1]
    ]
    trunk = torch.nn.Sequential(*layers).eval().requires_grad_(False).to(device)
    mean = torch.tensor(_IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(_IMAGENET_STD, device=device).view(1, 3, 1, 1)

    def features(images: Tensor) -> list[Tensor]:
        x, found = (images / 2 + 0.5 - mean) / std, []
        for index, layer in enumerate(trunk):
            x = layer(x)
            if index in _VGG16_LEVELS:
                found.append(F.normalize(x, dim=1, eps=1e-6))
        return found

    return features
