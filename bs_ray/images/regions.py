"""Regions: the squares of a photo that a base looks at, cut out, and their changes pasted back.

Only the change of a region returns to the photo, through a mask that fades to 0 at the region's
border. So nothing outside of the regions changes, and no seam shows.

Legend: a place is (x, y) in the photo's pixels, where the first pixel covers [0, 1); angles are
radians, and a positive one turns from the x axis towards the y axis (clockwise as seen).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from bs_ray.images.faces import Face
from bs_ray.images.scaling import stored

Eyes = tuple[tuple[float, float], tuple[float, float]]
"""Where the eyes are in a base's square, as shares of its side: (x, y) of the one that is further
to the left, then of the other."""

FEATHER = 0.1
"""Share of a region's side over which its mask fades, at each border."""
_AROUND = 0.25
"""What a close-up shows beside a region, on every side, as a share of the region's."""
_LEAST_SHARE = 0.8
"""A region's side is at least this share of the longer side of the face's box; frontal faces have
1.0 to 1.17 with the eyes of tiny-photo and CenterFace's boxes."""
_BICUBIC = Image.Resampling.BICUBIC
_FINE = 3
"""How much finer a picture is made before it is sampled at any place. Pillow's bicubic `transform`
bends straight ramps, its bicubic `resize` does not; so the latter comes first, and what it made is
fine enough for linear interpolation. Odd, so that a pixel's middle stays a pixel's middle."""
_FILTER_PX = 3
"""More than how far, in pixels of the smaller picture, bicubic resampling looks."""
_MOST_PX, _LEAST_GAP = 4096, 4
"""A region with a longer side, and so many times the side of its view, is cut out of a photo that
has been reduced: what is beyond a photo's border needs memory too."""


@dataclass(frozen=True)
class Region:
    """A square of a photo; it may be turned, and may reach over the photo's border."""

    x: float
    """Of the centre."""
    y: float
    side: float
    """Pixels of the photo."""
    angle: float = 0.0

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The least rectangle of whole pixels around it: left, top, right, bottom."""
        half = self.side / 2 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle)))
        return (
            math.floor(self.x - half),
            math.floor(self.y - half),
            math.ceil(self.x + half),
            math.ceil(self.y + half),
        )

    def described(self) -> dict[str, float]:
        """As an edited photo's provenance names it: centre and side in pixels, angle in degrees."""
        return {
            "x": round(self.x, 2),
            "y": round(self.y, 2),
            "side": round(self.side, 2),
            "degrees": round(math.degrees(self.angle), 2),
        }


def region_of(face: Face, eyes: Eyes | None, margin: float) -> Region:
    """The region that shows a face to a base.

    Where the base states where it expects the eyes, and the face's are known, the region brings
    them there, turned with the head. Else it is the square around the face's box, upright, with
    `margin` (a share of the box's longer side) on every side.
    """
    left, top, right, bottom = face.box
    longer = max(right - left, bottom - top)
    if eyes is None or face.landmarks is None:
        return Region((left + right) / 2, (top + bottom) / 2, longer * (1 + 2 * margin))
    there = [complex(*place) for place in face.landmarks[:2].tolist()]
    here = [complex(*place) for place in eyes]
    turn = (there[1] - there[0]) / (here[1] - here[0])
    # The eyes of a face in profile are close to each other; the region shows most of it still.
    side = max(abs(turn), _LEAST_SHARE * longer)
    angle = math.atan2(turn.imag, turn.real)
    turn = side * complex(math.cos(angle), math.sin(angle))
    centre = sum(there) / 2 + turn * (complex(0.5, 0.5) - sum(here) / 2)
    return Region(centre.real, centre.imag, side, angle)


def surroundings(regions: Sequence[Region], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what shows all regions with something around them, within a photo
    of some (height, width); all of it where there are none."""
    height, width = size
    if not regions:
        return 0, 0, width, height
    around = round(_AROUND * max(region.side for region in regions))
    lefts, tops, rights, bottoms = zip(*(region.bounds for region in regions), strict=True)
    return (
        max(0, min(lefts) - around),
        max(0, min(tops) - around),
        min(width, max(rights) + around),
        min(height, max(bottoms) + around),
    )


def crop(pixels: np.ndarray, region: Region, px: int) -> np.ndarray:
    """The region as uint8 [px, px, 3], of a photo uint8 [H, W, 3]; smaller ones are enlarged.

    Beyond the photo's border its outermost pixels are repeated.
    """
    if (times := math.ceil(region.side / max(_MOST_PX, _LEAST_GAP * px))) > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(times))
        region = Region(region.x / times, region.y / times, region.side / times, region.angle)
    cos, sin = math.cos(region.angle), math.sin(region.angle)
    scale = region.side / px
    # First upright at the scale of the result, which filters what is too fine; then turned.
    turned = abs(sin) > 1e-9
    whole_px = math.ceil(px * (abs(cos) + abs(sin))) + 2 * _FILTER_PX if turned else px
    half = whole_px * scale / 2
    reach = math.ceil(half + _FILTER_PX * max(1.0, scale))
    left, top = math.floor(region.x) - reach, math.floor(region.y) - reach
    around = Image.fromarray(_cut(pixels, left, top, 2 * reach + 1))
    x, y = region.x - left, region.y - top
    box = (x - half, y - half, x + half, y + half)
    upright = around.resize((whole_px, whole_px), _BICUBIC, box=box)
    if not turned:
        return np.asarray(upright)
    x, y = (whole_px - (cos - sin) * px) / 2, (whole_px - (sin + cos) * px) / 2
    return np.asarray(_sampled(upright, (px, px), (cos, -sin, x, sin, cos, y)))


def pasted(
    pixels: np.ndarray,
    changes: Sequence[tuple[Region, np.ndarray]],
    mask: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """A photo uint8 [H, W, 3] with the changes of its regions: [H, W, 3] in [0, 255], rounded for
    whole numbers.

    changes: for each region float [px, px, 3], in the photo's units. Where regions overlap, each
    counts as much as its mask. Pixels outside of all regions are exactly the photo's. mask: float32
    [H, W], 1 where the photo may change. Beside the result, memory holds one region, or those that
    overlap.
    """
    out = pixels.astype(dtype)
    rects = [_within(region.bounds, pixels) for region, _ in changes]
    for around, members in _clusters(rects):
        moved = pixels[_slices(around)].astype(np.float32)
        weights = {i: _weight(changes[i][0], rects[i]) for i in members}
        total = np.zeros(moved.shape[:2], np.float32)
        for i, weight in weights.items():
            total[_slices(rects[i], around)] += weight
        np.maximum(total, 1, out=total)
        for i, weight in weights.items():
            weight /= total[_slices(rects[i], around)]
            if mask is not None:
                weight *= mask[_slices(rects[i])]
            region, change = changes[i]
            added = _resampled(change, region, rects[i]) * weight[:, :, None]
            moved[_slices(rects[i], around)] += added
        out[_slices(around)] = stored(moved, dtype)
    return out


Rect = tuple[int, int, int, int]
"""left, top, right, bottom."""


def _cut(pixels: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square of the photo; its outermost pixels stand for what is beyond its border."""
    rows = np.clip(np.arange(top, top + side), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, pixels.shape[1] - 1)
    return pixels[rows[:, None], columns]


def _within(bounds: Rect, pixels: np.ndarray) -> Rect:
    """The part of a rectangle that is in the photo; without area where there is none."""
    height, width = pixels.shape[:2]
    left, right = (min(max(at, 0), width) for at in bounds[::2])
    top, bottom = (min(max(at, 0), height) for at in bounds[1::2])
    return left, top, right, bottom


def _slices(rect: Rect, around: Rect = (0, 0, 0, 0)) -> tuple[slice, slice]:
    """Rows and columns of a rectangle, counted from the corner of the one around it."""
    left, top, right, bottom = rect
    return slice(top - around[1], bottom - around[1]), slice(left - around[0], right - around[0])


def _clusters(rects: Sequence[Rect]) -> list[tuple[Rect, list[int]]]:
    """Rectangles that do not meet, around all those given, and which of them each is around."""
    clusters: list[tuple[Rect, list[int]]] = []
    for index, rect in enumerate(rects):
        around, members = rect, [index]
        while met := [cluster for cluster in clusters if _meet(cluster[0], around)]:
            clusters = [cluster for cluster in clusters if cluster not in met]
            corners = [around, *(cluster[0] for cluster in met)]
            members = [*(i for cluster in met for i in cluster[1]), *members]
            lefts, tops, rights, bottoms = zip(*corners, strict=True)
            around = min(lefts), min(tops), max(rights), max(bottoms)
        clusters.append((around, members))
    return clusters


def _meet(one: Rect, other: Rect) -> bool:
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) for i in (0, 1))


def _weight(region: Region, rect: Rect) -> np.ndarray:
    """The region's mask, float32 [h, w] over the rectangle: 0 from the region's border outwards."""
    left, top, right, bottom = rect
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - region.x)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - region.y)
    cos, sin = np.float32(math.cos(region.angle)), np.float32(math.sin(region.angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    return _faded(along, region.side) * _faded(across, region.side)


def _faded(place: np.ndarray, side: float) -> np.ndarray:
    """1 inside, smoothly 0 at the border, of a place that counts from the region's centre."""
    inside = np.clip((side / 2 - np.abs(place)) / (FEATHER * side), 0, 1)
    return inside * inside * (3 - 2 * inside)


def _resampled(change: np.ndarray, region: Region, rect: Rect) -> np.ndarray:
    """A region's change [px, px, 3] at the photo's pixels of the rectangle: float32 [h, w, 3]."""
    left, top, right, bottom = rect
    size = (right - left, bottom - top)
    if not all(size):
        return np.zeros((size[1], size[0], 3), np.float32)
    px = min(len(change), max(1, round(region.side)))  # a smaller region: filter what is too fine
    scale = px / region.side
    cos, sin = math.cos(region.angle) * scale, math.sin(region.angle) * scale
    x, y = left - region.x, top - region.y
    affine = (cos, sin, cos * x + sin * y + px / 2, -sin, cos, cos * y - sin * x + px / 2)
    channels = []
    for channel in np.moveaxis(change.astype(np.float32), -1, 0):
        image = Image.fromarray(np.ascontiguousarray(channel))
        if px < len(change):
            image = image.resize((px, px), _BICUBIC)
        channels.append(np.asarray(_sampled(image, size, affine)))
    return np.stack(channels, axis=-1)


def _sampled(image: Image.Image, size: tuple[int, int], affine: Sequence[float]) -> Image.Image:
    """A square picture at the places that an affine map (a, b, c, d, e, f) gives for the pixels of
    the result: (ax + by + c, dx + ey + f). 0 outside."""
    fine = image.resize((_FINE * image.width, _FINE * image.height), _BICUBIC)
    finer = [_FINE * number for number in affine]
    return fine.transform(size, Image.Transform.AFFINE, finer, Image.Resampling.BILINEAR)
