"""Boxes in requests and replies: where a photo has faces, and which squares of it were edited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from bs_ray.images.faces import Face
from bs_ray.images.regions import Region
from bs_ray.serve.http.problems import Problem

MAX_BOXES = 64
"""The most boxes that one request may give, and the most faces of a photo that are edited."""
MIN_BOX_PX = 8
"""The least side of a box."""
_MOST_OFTEN = 4
"""The regions of boxes may together have the area of so many photos; pasting costs as much."""
_FAR_PX = 1e6

_Pixels = Annotated[float, Field(ge=-_FAR_PX, le=_FAR_PX)]
_Place = Annotated[list[_Pixels], Field(min_length=2, max_length=2)]


class FaceBox(BaseModel):
    """Where a face is: as it was found, or as a caller says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    box: list[_Pixels] = Field(min_length=4, max_length=4)
    """left, top, right, bottom in pixels of the upright photo."""
    eyes: Annotated[list[_Place], Field(min_length=2, max_length=2)] | None = None
    """(x, y) of the eye that is further to the left of the upright face, then of the other. With
    them the face is turned upright, and framed as the base knows faces."""
    score: float = Field(1.0, ge=0, le=1)
    """How sure the detector is."""

    @classmethod
    def of(cls, face: Face) -> FaceBox:
        """A found face."""
        eyes = None if face.landmarks is None else face.landmarks[:2].tolist()
        return cls(box=list(face.box), eyes=eyes, score=face.score)

    def face(self) -> Face:
        """The face that it says is there."""
        left, top, right, bottom = self.box
        eyes = None if self.eyes is None else np.array(self.eyes, np.float32)
        return Face((left, top, right, bottom), eyes, self.score)


def _with_names(given: Any) -> Any:
    return {"box": given} if isinstance(given, list) else given


_CORNERS = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_EYE = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_FACE = {
    "type": "object",
    "required": ["box"],
    "properties": {
        "box": _CORNERS,
        "eyes": {"type": "array", "items": _EYE, "minItems": 2, "maxItems": 2},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "additionalProperties": False,
}
GivenBox = Annotated[
    FaceBox, BeforeValidator(_with_names), WithJsonSchema({"anyOf": [_CORNERS, _FACE]})
]
"""[left, top, right, bottom], or a face as /v1/images/faces describes it."""


class FacesReply(BaseModel):
    """The faces of a photo, the largest first."""

    width: int
    """Of the upright photo, pixels, which the boxes count."""
    height: int
    faces: list[FaceBox]
    """Each may be sent back among an edit's `boxes`."""
    region: str
    """What an edit that says nothing about it edits: photo, or face."""


class RegionInfo(BaseModel):
    """A square of the photo that was edited."""

    x: float
    """Of its centre, pixels."""
    y: float
    side: float
    degrees: float
    """By how much it is turned, clockwise."""


def check_boxes(boxes: Sequence[FaceBox], height: int, width: int) -> None:
    """Raise Problem 422 for a box that is not in the photo, or is too small or too large."""
    for number, given in enumerate(boxes):
        left, top, right, bottom = given.box
        sides = right - left, bottom - top
        within = 0 <= left + right <= 2 * width and 0 <= top + bottom <= 2 * height
        if not within or min(sides) < MIN_BOX_PX or max(sides) > 2 * max(width, height):
            raise Problem(
                422,
                "wrong-box",
                f"boxes.{number}: got {given.box}; expected [left, top, right, bottom] in pixels, "
                f"each side {MIN_BOX_PX} to {2 * max(width, height)}, and its middle within the "
                f"photo's {width} x {height}",
            )
        near = max(sides) / 2  # of a face in profile, an eye may be found beside the box
        for x, y in given.eyes or ():
            if not (left - near <= x <= right + near and top - near <= y <= bottom + near):
                raise Problem(
                    422,
                    "wrong-box",
                    f"boxes.{number}.eyes: got [{x:g}, {y:g}]; expected both eyes in or near the "
                    f"box {given.box}",
                )


def check_areas(regions: Sequence[Region], height: int, width: int) -> None:
    """Raise Problem 422 for regions of boxes that lie over each other many times."""
    covered = 0
    for region in regions:
        left, top, right, bottom = region.bounds
        within = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
        covered += max(0, within[0]) * max(0, within[1])
    if covered > _MOST_OFTEN * height * width:
        raise Problem(
            422,
            "wrong-box",
            f"boxes: got boxes that cover {covered / (height * width):.1f} times the photo's area "
            f"with their margins; expected at most {_MOST_OFTEN} times",
        )
