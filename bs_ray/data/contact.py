"""A contact sheet: photos before and after, side by side, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

_CELL_PX, _GAP_PX, _LABEL_PX, _HEAD_PX = 192, 8, 22, 34
_PAIRS_PER_ROW = 2
_INK, _PAPER = (30, 30, 30), (250, 250, 250)


def draw_pairs(pairs: Sequence[tuple[str, bytes, bytes]], title: str) -> bytes:
    """A PNG of (key, image file before, image file after), two pairs a row."""
    rows = -(-len(pairs) // _PAIRS_PER_ROW)
    pair_px = 2 * _CELL_PX + 3 * _GAP_PX
    height = _HEAD_PX + rows * (_CELL_PX + _LABEL_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (_PAIRS_PER_ROW * pair_px + _GAP_PX, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    head = f"before | after: {title}"
    draw.text((2 * _GAP_PX, _GAP_PX), head, _INK, ImageFont.load_default(18))
    for index, (key, before, after) in enumerate(pairs):
        row, column = divmod(index, _PAIRS_PER_ROW)
        x = _GAP_PX + column * pair_px
        y = _HEAD_PX + row * (_CELL_PX + _LABEL_PX + _GAP_PX)
        sheet.paste(_cell(before), (x + _GAP_PX, y))
        sheet.paste(_cell(after), (x + 2 * _GAP_PX + _CELL_PX, y))
        name = key if len(key) <= 48 else f"...{key[-45:]}"
        draw.text((x + _GAP_PX, y + _CELL_PX + 3), name, _INK, ImageFont.load_default(13))
    file = BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _cell(data: bytes) -> Image.Image:
    """The image, upright, fitted into a square cell."""
    with Image.open(BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.pad(upright, (_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC, color=_PAPER)
