"""The feature space phi of the perceptual loss (Eq 7), as a function of images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bs_ray.judges.judge import digest
from bs_ray.judges.network import JudgeNet
from bs_ray.judges.perceptual import Perceptual
from bs_ray.models.base import BaseNotFound
from bs_ray.train.losses import Features

VGG16_FILE = "vgg16-397923af.pth"
"""torchvision's ImageNet VGG16, as torch.hub names its download."""
_VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Widths of its convolutions, with a pooling between two blocks (Simonyan and Zisserman 2015). The
fifth block is left out."""
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


def features_trunk(folder: Path) -> str:
    """The network that `load_features` takes, as judges name the trunk they stand on."""
    judge = folder / "judges" / "perceptual.safetensors"
    return digest(judge) if judge.is_file() else "vgg16"


def untrained_features(folder: Path, device: str | torch.device) -> Features:
    """`load_features` with random weights for VGG16, to measure what it costs, not to train."""
    own = (folder / "judges").is_dir()
    return load_features(folder, device) if own else _vgg16(None, device)


def _vgg16(path: Path | None, device: str | torch.device) -> Features:
    with torch.device(device):
        trunk = _vgg16_trunk().eval().requires_grad_(False)
    if path:
        whole = torch.load(path, map_location="cpu", weights_only=True)
        trunk.load_state_dict({name: whole[f"features.{name}"] for name in trunk.state_dict()})
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


def _vgg16_trunk() -> nn.Sequential:
    """VGG16 up to relu4_3, its layers numbered as in torchvision's `features`."""
    layers: list[nn.Module] = []
    channels = 3
    for block in _VGG16_BLOCKS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in block:
            # In-place ReLUs would overwrite the maps that gradients need.
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
