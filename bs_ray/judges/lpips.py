"""LPIPS (Zhang et al. 2018) as its authors' package computes it. The only place that imports it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bs_ray.images.pixels import images_of
from bs_ray.judges.judge import Card, JudgeUnavailable, Pictures, Subject, digest
from bs_ray.judges.packages import need, package_version

TRUNKS = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
"""LPIPS' name of a net -> torchvision's name of it, and of the file that torch.hub downloads."""
MAX_PX = 512


class Lpips:
    """LPIPS with learned weights. The package brings these, but not the trunk below them."""

    needs_face = False

    def __init__(self, net: str = "alex"):
        """net: one of TRUNKS. Raises JudgeUnavailable where package or trunk is missing."""
        self._net_name = net
        name = f"lpips-{net}"
        need(name, "lpips", "torchvision")
        trunk, file = TRUNKS[net]
        self._file = Path(torch.hub.get_dir()) / "checkpoints" / file
        if not self._file.is_file():
            raise JudgeUnavailable(
                f"{name}: got no {self._file}; expected the ImageNet weights of {trunk}, which the "
                f"package lpips does not bring. Call torchvision.models.{trunk}"
                "(weights='DEFAULT') once where there is a network, or copy the file there"
            )
        self.card = Card(
            name,
            f"{package_version('lpips')}, {trunk} {digest(self._file)}",
            "BSD-2-Clause (lpips), BSD-3-Clause (trunk)",
            f"LPIPS 0.1, {net}; pictures of more than {MAX_PX} px are resized to that",
            trunk,
        )

    @cached_property
    def _net(self) -> Any:
        import lpips

        net = lpips.LPIPS(net=self._net_name, pnet_rand=True, verbose=False)
        weights = torch.load(self._file, map_location="cpu", weights_only=True)
        # LPIPS cuts the trunk's `features` into slices and keeps the layers' numbers.
        own = net.net.state_dict()
        net.net.load_state_dict(
            {name: weights[f"features.{name.partition('.')[2]}"] for name in own}
        )
        return net.eval().requires_grad_(False)

    @torch.no_grad()
    def distances(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See DistanceJudge."""
        photo, *others = subject.seen([subject.photo, *pictures], MAX_PX)
        still = images_of(photo)[None]
        return np.array([float(self._net(images_of(other)[None], still)) for other in others])
