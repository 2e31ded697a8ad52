"""The discriminator, which judges whether a patch looks like a photo (III-C of the paper).

It sees decoded one-step x0 estimates (fake) and real photos that went through the same VAE (real),
so that it cannot win by the VAE's own blur; in its cheap mode it sees both as latents. Images are
float32 [B, 3, H, W], about [-1, 1], not clipped; latents [B, C, h, w].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bs_ray.train.losses import Features, discriminator_loss, r1_penalty

_WIDTHS = (32, 64, 128, 128, 128)
_GRID = 8  # patches along a side, or more


def _level(inputs: int, outputs: int, first: bool) -> nn.Sequential:
    # No norm on the first level, since it would hide the picture's own contrast and colour cast.
    norm = nn.Identity() if first else nn.GroupNorm(8, outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), norm, nn.LeakyReLU(0.2)
    )


class Critic(nn.Module):
    """A discriminator and its loss.

    Its forward pass is its loss: DeepSpeed's engines follow exactly one forward pass, and must not
    see the inner gradient that the gradient penalty needs. The slider's loss uses `score`.
    """

    def __init__(self, r1: float):
        """r1: weight of the gradient penalty on what is real."""
        super().__init__()
        self.r1 = r1

    def score(self, images: Tensor) -> Tensor:
        """Realism per patch: [B, maps, h, w], high for real."""
        raise NotImplementedError

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss per (real, fake) pair: [B]."""
        real = real.detach().requires_grad_(self.r1 > 0)
        real_logits = self.score(real)
        loss = discriminator_loss(real_logits, self.score(fake.detach()))
        if self.r1 > 0:
            loss = loss + self.r1 * r1_penalty(real_logits, real)
        return loss


class Discriminator(Critic):
    """A PatchGAN (Isola et al. 2017): one map of patches."""

    def __init__(self, channels: int, side: int, r1: float, seed: int):
        """channels, side: of the images or latents. Side 64 gives 8 x 8 patches; larger sides get
        more levels."""
        super().__init__(r1)
        levels = min(max((side // _GRID).bit_length() - 1, 1), len(_WIDTHS))
        widths = (channels, *_WIDTHS[:levels])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                *(_level(widths[i], widths[i + 1], first=i == 0) for i in range(levels)),
                # No bias: its gradient would be rounding alone, which Adam would inflate.
                nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False),
            )

    def score(self, images: Tensor) -> Tensor:
        """[B, 1, H / 2^levels, W / 2^levels]."""
        return self.net(images)


class FeatureHeads(Critic):
    """A small head on each level of a frozen network's features, as in projected GANs (Sauer et al.
    2021): what it sees does not drift with what it learns."""

    def __init__(self, features: Features, channels: Sequence[int], r1: float, seed: int):
        """features: a frozen function of images; channels: those of its levels."""
        super().__init__(r1)
        self.features = features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(_head(count) for count in channels)

    def score(self, images: Tensor) -> Tensor:
        """[B, levels, h, w] at the finest level's size: every level counts the same."""
        maps = self.features(images)
        logits = [head(level.float()) for head, level in zip(self.heads, maps, strict=True)]
        size = logits[0].shape[-2:]
        return torch.cat([F.interpolate(level, size) for level in logits], 1)


def _head(channels: int, width: int = 64) -> nn.Sequential:
    return nn.Sequential(
        # Without weights: features of unit length have tiny values, and this undoes it.
        nn.GroupNorm(1, channels, affine=False),
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 1, 1, bias=False),
    )
