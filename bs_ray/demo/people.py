"""The demo's people: portraits under sliders, a row for each portrait and slider."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageOps

from bs_ray.config import Words, editor_settings
from bs_ray.config.base import MAX_PIXELS
from bs_ray.editing.editor import Edit, Edited, Editor, outputs_of, to_uint8
from bs_ray.images.decode import decode
from bs_ray.images.faces import CenterFace
from bs_ray.images.regions import surroundings
from bs_ray.images.rows import DecodedRow, is_quarantined
from bs_ray.images.sheets import draw_captioned
from bs_ray.models import identify_base, load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import slider_of_words
from bs_ray.storage import Store

BASE = "tiny-photo"
SAMPLES = Path(__file__).parent.parent / "samples"
"""Two portraits in the public domain, see SOURCES.md there."""
NAME = "age-photo"
TRAINED = ["steps=60", "losses.perceptual=0"]
"""How the shipped job that trains it is changed: what takes a minute, and needs no photos."""
MOST = 4
"""How many portraits are edited, so that the demo takes minutes whatever folder it is given."""
CELL_PX = 224

SETTINGS = editor_settings({"region": "face", "faces": "largest"})
AGE = (-2.0, -1.0, 0.0, 1.0, 2.0)
SMILE = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Upwards alone: an open smile that is to close leaves shreds of teeth."""
WORDS = {
    "old": (
        # Both ends smile, so that the mouth is no part of the difference.
        Words(positive="person, smiling, old", negative="person, smiling, young"),
        AGE,
    ),
    "smiling": (Words(positive="person, smiling", negative="person, not smiling"), SMILE),
}
"""Sliders from words, and the strengths that they are shown at."""


@dataclass(frozen=True)
class Cell:
    """A portrait at one strength."""

    caption: str
    pixels: np.ndarray
    """uint8 [CELL_PX, CELL_PX, 3], around the face."""


@dataclass(frozen=True)
class Row:
    """A portrait under one slider."""

    portrait: str
    slider: str
    how: str
    """Where the slider comes from, in words."""
    cells: list[Cell]


def portraits(folder: str) -> list[DecodedRow]:
    """The first portraits below a folder (local or s3://) that show a face, MOST at most.

    Raises ValueError where there is none, FacesUnavailable and StorageError.
    """
    detector, store = CenterFace(), Store(folder)
    found: list[DecodedRow] = []
    for entry in store.list():
        row = decode(Path(entry.key).name, store.read(entry.key), max_pixels=MAX_PIXELS)
        if is_quarantined(row):
            continue
        if any(face.size >= SETTINGS.face_min_px for face in detector.find(row["pixels"])):
            found.append(row)
        if len(found) == MOST:
            break
    if not found:
        raise ValueError(
            f"--photos: got {folder}, in which no picture shows a face; expected a folder of "
            "portraits. Leave it out for those that come with bs_ray"
        )
    return found


def under_sliders(portraits: Sequence[DecodedRow], trained: Slider | None = None) -> list[Row]:
    """Every portrait under every slider. trained: an age slider of BASE."""
    model, base_id = load_base(BASE), identify_base(BASE)
    by_slider: list[list[Row]] = []
    if trained:
        by_slider.append(_rows(model, portraits, trained, "trained in this demo", AGE))
    for name, (words, strengths) in WORDS.items():
        how = f"words, nothing trained: “{words.positive}” against “{words.negative}”"
        slider = slider_of_words(words, BASE, base_id, name)
        by_slider.append(_rows(model, portraits, slider, how, strengths))
    return [row for rows in zip(*by_slider, strict=True) for row in rows]


def as_html(rows: Sequence[Row]) -> str:
    """The rows as a part of a page."""
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    columns = max(len(row.cells) for row in rows)
    template = pages.get_template("demo/people.html.j2")
    return template.render(rows=rows, columns=columns, base=BASE, uri=_data_uri)


def as_sheet(rows: Sequence[Row]) -> bytes:
    """The rows as one PNG."""
    lines = [[(cell.pixels, cell.caption) for cell in row.cells] for row in rows]
    return draw_captioned(lines, "Portraits under sliders, at the strengths below them")


def _data_uri(pixels: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _rows(
    model: DiffusionModel,
    portraits: Sequence[DecodedRow],
    slider: Slider,
    how: str,
    strengths: Sequence[float],
) -> list[Row]:
    """Every portrait under one slider, in an editor of its own: as `edit-one` does it."""
    editor = Editor(model, [slider], SETTINGS)
    mixes = [editor.mix({slider.reference: strength}) for strength in strengths]
    name, rows = slider.card.name, []
    for portrait in portraits:  # one by one: each output has the size of the photo
        edit = Edit(portrait["sha256"], portrait["pixels"], mixes)
        cells = [
            Cell(f"{name} {strength:+g}" if strength else "the photo", _cell(output))
            for strength, output in zip(strengths, outputs_of(editor.edit([edit])[0]), strict=True)
        ]
        rows.append(Row(Path(portrait["key"]).stem, name, how, cells))
    editor.close()
    return rows


def _cell(output: Edited) -> np.ndarray:
    """What is around the face."""
    left, top, right, bottom = surroundings(output.regions, output.pixels.shape[:2])
    around = Image.fromarray(to_uint8(output.pixels[top:bottom, left:right]))
    return np.asarray(ImageOps.fit(around, (CELL_PX, CELL_PX), Image.Resampling.BICUBIC))
