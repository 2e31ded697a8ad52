"""Strips of edited pictures: a row for each face or arm, a column for each strength."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image

from bs_ray.evaluate.arms import Arm
from bs_ray.images.sheets import draw_strip

_SMALL_PX = 64
"""Pictures of the tiny world, which are enlarged without smoothing."""


def kept(table: pd.DataFrame, split: str, arm: Arm) -> pd.DataFrame:
    """The rows of an arm whose pictures were kept, sorted by item and strength."""
    own = table[
        (table["split"] == split) & (table["group"] == arm.group) & (table["arm"] == arm.name)
    ]
    own = own[own["strength"].notna() & own["picture"].notna()]
    return own.sort_values(["item", "strength"])


def halves(rows: pd.DataFrame) -> list[Image.Image]:
    """The kept pictures of one arm: a row for each face, a column a strength.

    In two halves, which stand side by side where there is room.
    """
    lines = [_line(face["picture"]) for _, face in rows.groupby("item")]
    half = (len(lines) + 1) // 2
    return [_stacked(part) for part in (lines[:half], lines[half:]) if part]


def side_by_side(
    table: pd.DataFrame, split: str, arms: Sequence[Arm], faces: int
) -> Image.Image | None:
    """The first faces that all arms kept, each under one arm after the other; None where there is
    none."""
    rows = [kept(table, split, arm) for arm in arms]
    shared = set.intersection(*(set(one["item"]) for one in rows))
    lines: list[list[Image.Image]] = []
    numbers: list[str] = []
    columns: list[str] = []
    for face in sorted(shared)[:faces]:
        for number, one in enumerate(rows, start=1):
            own = one[one["item"] == face]
            columns = [f"{strength:+g}" if strength else "0" for strength in own["strength"]]
            lines.append([_opened(picture) for picture in own["picture"]])
            numbers.append(str(number))
    if not lines:
        return None
    size = lines[0][0].size
    pixels = [[np.asarray(picture.resize(size)) for picture in line] for line in lines]
    return draw_strip(pixels, columns, numbers, split)


def _opened(png: bytes) -> Image.Image:
    with Image.open(BytesIO(png)) as image:
        return image.convert("RGB")


def _line(pictures: pd.Series) -> Image.Image:
    images = [_opened(png) for png in pictures]
    height = max(image.height for image in images)
    line = Image.new("RGB", (sum(image.width for image in images), height), "white")
    x = 0
    for image in images:
        line.paste(image, (x, 0))
        x += image.width
    return line


def _stacked(lines: Sequence[Image.Image]) -> Image.Image:
    width = max(line.width for line in lines)
    whole = Image.new("RGB", (width, sum(line.height for line in lines)), "white")
    y = 0
    for line in lines:
        whole.paste(line, (0, y))
        y += line.height
    if lines[0].height <= _SMALL_PX:
        return whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST)
    return whole


def as_file(image: Image.Image) -> tuple[bytes, str]:
    """(the file, its media type): PNG for small pictures, JPEG for photos."""
    file = BytesIO()
    if image.width * image.height <= 1 << 19:
        image.save(file, "PNG", optimize=True)
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"
