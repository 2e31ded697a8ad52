"""Sheets of pictures with labels: photos before and after, and strips over strengths."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from bs_ray.images.decode import decode
from bs_ray.images.rows import is_quarantined

_CELL_PX, _GAP_PX, _LABEL_PX, _HEAD_PX = 192, 8, 22, 34
_PAIRS_PER_ROW = 2
_MAX_PIXELS = 1 << 30  # these photos have been decoded before, within their job's limit
_INK, _PAPER = (30, 30, 30), (250, 250, 250)
_SMOOTH = Image.Resampling.LANCZOS


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
    return _as_png(sheet)


def _cell(data: bytes) -> Image.Image:
    """The photo, upright, fitted into a square cell; an empty one where it cannot be read."""
    row = decode("cell", data, max_pixels=_MAX_PIXELS)
    size = (_CELL_PX, _CELL_PX)
    if is_quarantined(row):
        return Image.new("RGB", size, _PAPER)
    upright = Image.fromarray(row["pixels"])
    return ImageOps.pad(upright, size, Image.Resampling.BICUBIC, color=_PAPER)


def draw_captioned(rows: Sequence[Sequence[tuple[np.ndarray, str]]], title: str) -> bytes:
    """A PNG of rows of (picture uint8 [H, W, 3], its caption), all of one size."""
    height, width = rows[0][0][0].shape[:2]
    across, down = width + _GAP_PX, height + _LABEL_PX + _GAP_PX
    columns = max(len(row) for row in rows)
    size = (columns * across + _GAP_PX, _HEAD_PX + len(rows) * down + _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * _GAP_PX, _GAP_PX), title, _INK, ImageFont.load_default(18))
    for n, row in enumerate(rows):
        for k, (pixels, caption) in enumerate(row):
            x, y = _GAP_PX + k * across, _HEAD_PX + n * down
            sheet.paste(Image.fromarray(pixels), (x, y))
            middle = (x + width // 2, y + height + _LABEL_PX // 2)
            draw.text(middle, caption, _INK, ImageFont.load_default(14), anchor="mm")
    return _as_png(sheet)


def stacked(sheets: Sequence[bytes]) -> bytes:
    """PNGs one below the other as one PNG, of the width of the first."""
    images = [Image.open(BytesIO(sheet)) for sheet in sheets]
    width = images[0].width
    fitted = [i.resize((width, round(i.height * width / i.width)), _SMOOTH) for i in images]
    whole = Image.new("RGB", (width, sum(image.height for image in fitted)), _PAPER)
    y = 0
    for image in fitted:
        whole.paste(image, (0, y))
        y += image.height
    return _as_png(whole)


def _as_png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


_MIN_SIDE_PX, _MAX_SIDE_PX = 128, 384
_LINE_PX, _SEAM_PX = 22, 4


def draw_strip(
    pixels: Sequence[Sequence[np.ndarray]], columns: Sequence[str], rows: Sequence[str], title: str
) -> Image.Image:
    """One RGB image with labels, of pictures uint8 [H, W, 3] of one size, rows x columns."""
    tall, wide = pixels[0][0].shape[:2]
    scale = min(max(max(tall, wide), _MIN_SIDE_PX), _MAX_SIDE_PX) / max(tall, wide)
    width, height = max(1, round(wide * scale)), max(1, round(tall * scale))
    font = ImageFont.load_default(13)
    across, down = width + _SEAM_PX, height + _SEAM_PX
    margin = round(max(map(font.getlength, rows))) + 4 * _SEAM_PX
    lines = _title_lines(title, font, margin + len(columns) * across - 2 * _SEAM_PX)
    top = (len(lines) + 1) * _LINE_PX
    size = (margin + len(columns) * across, top + len(rows) * down)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_SEAM_PX, number * _LINE_PX + 3), line, "black", font)
    for k, label in enumerate(columns):
        x = margin + k * across
        pen.text((x + width // 2, top - _LINE_PX // 2), label, "black", font, anchor="mm")
        for n, name in enumerate(rows):
            y = top + n * down
            pen.text((margin // 2, y + height // 2), name, "gray", font, anchor="mm")
            picture = Image.fromarray(pixels[n][k])
            sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (x, y))
    return sheet


def _title_lines(title: str, font: Any, width: int) -> list[str]:
    """The title's parts ("  " between them) in lines that fit."""
    lines: list[str] = []
    for part in title.split("  "):
        longer = f"{lines[-1]}  {part}" if lines else part
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines
