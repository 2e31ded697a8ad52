"""Where a photo is edited: as a whole, or in some regions of it. Needs no model, and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bs_ray.config import EditorSettings
from bs_ray.images.faces import Box, Face, FaceDetector
from bs_ray.images.regions import Eyes, Region, crop, region_of
from bs_ray.images.scaling import shrunk


@dataclass(frozen=True)
class Sight:
    """What has to be known of a base to look at photos as it does."""

    side: int
    """Of the square whose area it works at, pixels."""
    multiple_px: int
    """Sides of its pictures are multiples of this."""
    eyes: Eyes | None
    """Where it expects the eyes of a face."""

    def views(self, pixels: np.ndarray, regions: Sequence[Region] | None) -> list[np.ndarray]:
        """What it sees of a photo uint8 [H, W, 3], as `locate` gives the regions: uint8 [h, w, 3]
        of its working sizes."""
        if regions is None:
            height, width = pixels.shape[:2]
            return [shrunk(pixels, working_size(height, width, self.side, self.multiple_px))]
        px, _ = working_size(1, 1, self.side, self.multiple_px)
        return [crop(pixels, region, px) for region in regions]


def locate(
    pixels: np.ndarray,
    settings: EditorSettings,
    eyes: Eyes | None,
    detector: Callable[[], FaceDetector],
    given: Sequence[Face] | None = None,
) -> tuple[tuple[Region, ...] | None, str]:
    """(the regions, those of larger faces first, or None for the whole photo; a note, or "").

    pixels: uint8 [H, W, 3]. eyes: where the base expects them. given: faces that stand for found
    ones. detector: asked for where faces have to be found, and may raise FacesUnavailable.
    """
    if settings.region == "photo":
        return None, ""
    faces = given
    if faces is None:
        faces = chosen_faces(detector().find(pixels), settings)
    what = "face was found" if given is None else "box was given"
    if not faces and settings.no_face == "photo":
        return None, f"no {what}; the whole photo was edited"
    regions = tuple(region_of(face, eyes, settings.face_margin) for face in faces)
    return regions, "" if faces else f"no {what}; nothing was edited"


def chosen_faces(faces: Sequence[Face], settings: EditorSettings) -> list[Face]:
    """The faces to edit, the largest first.

    By area: a box that the photo's border cuts has one long side, and is seldom the subject.
    """
    large = [face for face in faces if face.size >= settings.face_min_px]
    large.sort(key=lambda face: -face.area)  # stable, so else as the detector has them
    if settings.faces == "all":
        return large
    return large[: 1 if settings.faces == "largest" else settings.faces]


def wrong_box(boxes: Sequence[Box], size: tuple[int, int]) -> str:
    """What is wrong with boxes in a photo of some (height, width): got and expected; "" if nothing
    is."""
    height, width = size
    for box in boxes:
        sound = len(box) == 4 and bool(np.isfinite(box).all())
        if not (sound and max(box[0], 0) < min(box[2], width)) or (
            max(box[1], 0) >= min(box[3], height)
        ):
            return (
                f"got box {list(box)}; expected [left, top, right, bottom] in pixels, with left < "
                f"right and top < bottom, within {width} x {height}"
            )
    return ""


def view_key(key: str, number: int) -> str:
    """The name of the noise of a photo's view: the photo's own, and for its n-th further region
    `key#n`."""
    return f"{key}#{number}" if number else key


def working_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The size at which a photo is edited as a whole: its aspect, the area of a square of `side`
    pixels, both sides multiples of `multiple`."""
    # Few sizes, so that photos share them: at 1024 px multiples of 64, as in SDXL's own buckets.
    unit = multiple * max(1, side // 16 // multiple)
    aspect = min(max(height / width, 0.25), 4.0)
    tall, wide = side * aspect**0.5, side / aspect**0.5
    return max(unit, round(tall / unit) * unit), max(unit, round(wide / unit) * unit)
