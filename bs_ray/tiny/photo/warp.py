"""Faces bent out of shape: a smooth random warp around the eyes, the mouth or the jaw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: where the parts lie in a wide and in a tight picture, as shares of its square: x, y, and how far
#: around it the warp reaches.
PARTS = (
    ((0.337, 0.36, 0.11), (0.663, 0.36, 0.11), (0.505, 0.72, 0.14), (0.51, 0.92, 0.2)),
    ((0.296, 0.30, 0.13), (0.686, 0.30, 0.13), (0.492, 0.71, 0.17), (0.492, 0.95, 0.22)),
)
_LEAST, _MOST = 0.035, 0.075
"""How far a part is moved, as a share of the square."""


def bend(x: Tensor, tight: Tensor, rng: torch.Generator) -> Tensor:
    """Each face [B, 3, H, W] with one or two of its parts pushed aside, squeezed or swollen.

    tight: bool [B], how each is framed.
    """
    field = torch.zeros(len(x), *x.shape[-2:], 2, device=x.device)
    first = torch.randint(len(PARTS[0]), (len(x),), generator=rng, device=x.device)
    second = torch.randint(len(PARTS[0]), (len(x),), generator=rng, device=x.device)
    twice = torch.rand(len(x), generator=rng, device=x.device) < 0.5
    field += _push(x, tight, first, rng)
    field += _push(x, tight, second, rng) * (twice & (second != first))[:, None, None, None]
    still = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    places = F.affine_grid(still, list(x.shape), align_corners=False)
    return F.grid_sample(x, places + field, padding_mode="border", align_corners=False)


def _push(x: Tensor, tight: Tensor, part: Tensor, rng: torch.Generator) -> Tensor:
    """A displacement field [B, H, W, 2] in units of `grid_sample` around one part of each face."""
    count, device = len(x), x.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=rng, device=device)

    middle = torch.tensor(PARTS, device=device)[tight.long(), part]
    rows, columns = (torch.arange(n, device=device) / n for n in x.shape[-2:])
    dx = columns[None, None, :] - middle[:, 0, None, None] - draw(-0.03, 0.03)
    dy = rows[None, :, None] - middle[:, 1, None, None] - draw(-0.03, 0.03)
    reach = middle[:, 2, None, None] * draw(0.8, 1.2)
    near = torch.exp(-(dx**2 + dy**2) / (2 * reach**2))
    angle, size = draw(0, 2 * torch.pi), draw(_LEAST, _MOST)
    swell = draw(-0.7, 0.7) * (draw(0, 1) < 0.5)
    across = near * (size * angle.cos() + swell * dx)
    down = near * (size * angle.sin() + swell * dy)
    return 2 * torch.stack([across, down], dim=-1)
