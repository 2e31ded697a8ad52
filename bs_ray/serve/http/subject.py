"""A request's photo: where it is edited, what the engine sees of it, and what becomes of it.

The photo itself stays on this side. A replica gets pictures of the size at which its base works,
and gives what changes in them. None of this needs torch; it takes some tenths of a second for a
large photo, so it is for threads beside the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from bs_ray.config import EditorSettings
from bs_ray.editing.locate import Sight, locate, view_key
from bs_ray.images.faces import FaceDetector, FacesUnavailable
from bs_ray.images.regions import Region, pasted
from bs_ray.images.rows import DecodedRow
from bs_ray.images.scaling import moved, shrunk
from bs_ray.serve.engine.tasks import Changes
from bs_ray.serve.http.boxes import MAX_BOXES, FaceBox, check_areas, check_boxes
from bs_ray.serve.http.problems import Problem

_PREVIEW_PX = 1024
"""Longer side of a partial picture, at most."""


@dataclass(frozen=True)
class Subject:
    """A photo and where it is edited."""

    photo: DecodedRow
    mask: np.ndarray | None
    """float32 [H, W], 1 where the photo may change."""
    regions: tuple[Region, ...] | None
    """None for the whole photo."""
    views: list[np.ndarray]
    """What the base sees, uint8 [h, w, 3] each: the whole photo, or every region."""
    note: str
    """What the caller should know of it."""

    @property
    def keys(self) -> list[str]:
        """The names of the views' noise, as the Editor has them."""
        return [view_key(self.photo["sha256"], number) for number in range(len(self.views))]

    def picture(self, changes: Changes, dtype: DTypeLike) -> np.ndarray:
        """The photo with these changes of its views: [H, W, 3] in [0, 255], rounded for uint8."""
        pixels = self.photo["pixels"]
        if self.regions is not None:
            there = _paired(self.regions, changes)
            return pasted(pixels, there, self.mask, dtype)
        [change] = changes
        if change is None:
            return pixels.astype(dtype)
        return moved(pixels, change, self.mask, dtype)

    def preview(self, changes: Changes, first: int) -> np.ndarray:
        """A small picture of the photo with the changes of some views, from number `first` on:
        uint8."""
        pixels = self.photo["pixels"]
        height, width = pixels.shape[:2]
        times = min(1.0, _PREVIEW_PX / max(height, width))
        size = max(1, round(height * times)), max(1, round(width * times))
        small: DecodedRow = {**self.photo, "pixels": shrunk(pixels, size)}
        mask = None if self.mask is None else _shrunk_mask(self.mask, size)
        regions = None
        if self.regions is not None:
            these = self.regions[first : first + len(changes)]
            regions = tuple(
                Region(r.x * times, r.y * times, r.side * times, r.angle) for r in these
            )
        return Subject(small, mask, regions, [], "").picture(changes, np.uint8)

    def described(self) -> list[dict[str, float]] | None:
        """Its regions, as provenance names them; None for the whole photo."""
        if self.regions is None:
            return None
        return [region.described() for region in self.regions]


def subject_of(
    photo: DecodedRow,
    mask: np.ndarray | None,
    settings: EditorSettings,
    sight: Sight,
    detector: Callable[[], FaceDetector],
    boxes: Sequence[FaceBox] | None,
) -> Subject:
    """A photo with its regions found, and its views cut.

    boxes: where faces are, instead of looking for them. Raises Problem 422.
    """
    pixels = photo["pixels"]
    height, width = pixels.shape[:2]
    given = None
    if boxes is not None:
        check_boxes(boxes, height, width)
        given = [box.face() for box in boxes]
    try:
        regions, note = locate(pixels, settings, sight.eyes, detector, given)
    except FacesUnavailable as error:
        raise no_detector("region: got face") from error
    if regions and boxes is not None:
        check_areas(regions, height, width)
    if regions and len(regions) > MAX_BOXES:
        note = f"{len(regions)} faces were found; the {MAX_BOXES} largest were edited"
        regions = regions[:MAX_BOXES]
    return Subject(photo, mask, regions, sight.views(pixels, regions), note)


def no_detector(got: str) -> Problem:
    """422 where faces have to be found and the server cannot."""
    detail = (
        f"{got}, and this server has no face detector; expected `boxes`, which say where faces are"
    )
    return Problem(422, "no-face-detector", detail)


def _paired(regions: Sequence[Region], changes: Changes) -> list[tuple[Region, np.ndarray]]:
    """The regions that change, each with its change."""
    pairs = zip(regions, changes, strict=True)
    return [(region, change) for region, change in pairs if change is not None]


def _shrunk_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.BILINEAR))
