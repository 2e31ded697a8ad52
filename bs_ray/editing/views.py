"""What the base sees of an edit's photo, all of it or some regions, and how it comes back.

No torch: who asks for edits, in another process, does without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bs_ray.config import EditorSettings
from bs_ray.editing.locate import view_key, wrong_box
from bs_ray.images.faces import Box
from bs_ray.images.regions import Region, crop, pasted
from bs_ray.images.scaling import moved
from bs_ray.sliders.mix import Mix

if TYPE_CHECKING:
    from torch import Tensor


class EditError(ValueError):
    """An edit that cannot be made; the message says got, expected and what to do."""


@dataclass(frozen=True)
class Edit:
    """One photo and what to do with it: every mix of sliders gives one output."""

    key: str
    """Names the photo's noise: its content hash, so that batch and serve agree."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    mixes: Sequence[Mix]
    """One for each output, as `Editor.mix` makes them."""
    seed: int = 0
    mask: np.ndarray | None = None
    """float32 [H, W] in [0, 1], 1 where the photo may change; without one it may everywhere."""
    settings: EditorSettings | None = None
    """How to edit this photo; None stands for the Editor's own settings."""
    boxes: Sequence[Box] | None = None
    """Where to edit it, with `region: boxes`; with `region: face` they stand for found faces."""
    regions: tuple[Region, ...] | None = None
    """Where to edit it, as `Editor.located` says; None stands for the whole photo."""
    notes: tuple[str, ...] = ()
    """What the caller should know of every output."""
    cut: bool = False
    """Whether `pixels` are a view of a photo, of the size at which the base sees it."""


@dataclass(frozen=True)
class Edited:
    """One output."""

    pixels: np.ndarray
    """float32 RGB [H, W, 3] in [0, 255], the photo's own size."""
    notes: tuple[str, ...] = ()
    """What the caller should know, such as a strength beyond the slider's usable range."""
    measured: dict[str, float] = field(default_factory=dict)
    """What a quality gate found: `identity`, `effect`."""
    regions: tuple[Region, ...] = ()
    """Where the photo was edited; empty where it was edited as a whole, or not at all."""
    change: np.ndarray | None = None
    """Of a view that was cut before (`Edit.cut`), by what it moves: float32 [h, w, 3] in units of
    [0, 255]; None where it does not."""


Outcome = list[Edited] | EditError
"""What became of one Edit: its outputs, or what is wrong with it."""


def outputs_of(outcome: Outcome) -> list[Edited]:
    """The outputs. Raises the EditError where there is one."""
    if isinstance(outcome, list):
        return outcome
    raise outcome


@dataclass(frozen=True)
class View:
    """What the base sees of an edit's photo: all of it, or one of its regions."""

    edit: int
    """Number of the edit."""
    key: str
    """Names the view's noise: see `view_key`."""
    seed: int
    pixels: np.ndarray
    """uint8 RGB [h, w, 3]."""
    region: Region | None = None


def views_of(edits: Sequence[Edit], px: int) -> list[View]:
    """The views of all edits, in order. px: side of a region's view."""
    views = []
    for index, edit in enumerate(edits):
        if edit.regions is None:
            views.append(View(index, edit.key, edit.seed, edit.pixels))
        for number, region in enumerate(edit.regions or ()):
            key, pixels = view_key(edit.key, number), crop(edit.pixels, region, px)
            views.append(View(index, key, edit.seed, pixels, region))
    return views


def changed(edit: Edit, found: Sequence[tuple[View, Tensor]]) -> np.ndarray:
    """The photo moved by its views' residuals [3, h, w] in units of [-1, 1], within its mask."""
    if edit.regions is not None:
        changes = [(view.region, as_pixels(change)) for view, change in found if view.region]
        return pasted(edit.pixels, changes, edit.mask)
    if not found:
        return edit.pixels.astype(np.float32)
    [(_, residual)] = found
    return moved(edit.pixels, as_pixels(residual), edit.mask)


def with_changes(edit: Edit, changes: Sequence[np.ndarray | None]) -> np.ndarray:
    """The photo moved by the changes of its regions, float32 [h, w, 3] in units of [0, 255]."""
    found = zip(edit.regions or (), changes, strict=True)
    return pasted(
        edit.pixels, [(r, change) for r, change in found if change is not None], edit.mask
    )


def as_pixels(residual: Tensor) -> np.ndarray:
    """[3, h, w] in units of [-1, 1] -> [h, w, 3] in units of [0, 255]."""
    return residual.permute(1, 2, 0).numpy() * 127.5


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float [0, 255] -> uint8, rounded."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def check_boxes(edit: Edit, settings: EditorSettings) -> None:
    """Raise EditError for boxes that settings do not ask for, or lack, or that are none."""
    if edit.boxes is None:
        if settings.region == "boxes" and edit.regions is None:
            raise EditError(
                f"photo {edit.key}: got no boxes; expected some, since editor.region is boxes. "
                "Give them, or let faces be found: editor.region=face"
            )
        return
    if settings.region == "photo":
        raise EditError(
            f"photo {edit.key}: got boxes; expected none, since editor.region is photo. Set "
            "editor.region=boxes"
        )
    if wrong := wrong_box(edit.boxes, (edit.pixels.shape[0], edit.pixels.shape[1])):
        raise EditError(f"photo {edit.key}: {wrong}")
