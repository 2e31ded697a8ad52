"""One photo from the shell: edit it, sweep sliders over it, or add them up, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from bs_ray import __version__
from bs_ray.config import EditorSettings, JobError, WordsAtStrength, words_at_strength
from bs_ray.config.base import MAX_PIXELS, OtherBases
from bs_ray.editing.editor import Edit, EditError, Editor, outputs_of, to_uint8
from bs_ray.images.decode import decode
from bs_ray.images.encode import encode
from bs_ray.images.faces import Box
from bs_ray.images.regions import surroundings
from bs_ray.images.rows import DecodedRow, is_quarantined
from bs_ray.images.sheets import draw_strip
from bs_ray.models import identify_base, load_base
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import words_said

SHARES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""A sweep's columns, as shares of the strength that was asked for."""


class OnePhoto:
    """A photo, and an Editor with the sliders that it is to be edited with."""

    def __init__(
        self,
        photo: Path,
        sliders: Mapping[str, float],
        settings: EditorSettings,
        *,
        base: str = "tiny",
        registry: str = "sliders",
        seed: int = 0,
        boxes: Sequence[Box] | None = None,
        words: Sequence[WordsAtStrength] = (),
        other_bases: OtherBases = "warn",
    ):
        """sliders: reference -> strength, in the order in which `compose` adds them; then words,
        each at one strength. boxes: where the photo is edited, with `region: boxes`. other_bases:
        whether sliders of another base of the family are used.

        Raises EditError for a photo that cannot be read, SliderError, BaseNotFound and
        FacesUnavailable.
        """
        self.row = _read(photo)
        here = identify_base(base)
        found = [Registry(registry).resolve_on(one, here, other_bases) for one in sliders]
        strengths = list(sliders.values())
        for one in words:
            assert isinstance(one.strength, float)
            found.append(Slider.of_words(one, base, here.id))
            strengths.append(one.strength)
        self.editor = Editor(load_base(base), found, settings)
        self.strengths = dict(zip((s.reference for s in found), strengths, strict=True))
        self.names = [slider.card.name for slider in found]
        self.seed, self.boxes = seed, boxes

    def edit(self) -> tuple[bytes, tuple[str, ...]]:
        """(the edited photo as a file of its own format, notes).

        Size, EXIF, colour profile and transparency are the photo's. Where nothing moves, its very
        bytes are returned.
        """
        if self.editor.settings.method == "displacement" and not any(self.strengths.values()):
            assert self.row["source"] is not None
            return self.row["source"], ()
        [edited] = outputs_of(self.editor.edit([self._edit([self.strengths])])[0])
        row = DecodedRow(**{**self.row, "source": None, "pixels": to_uint8(edited.pixels)})
        made = {"sliders": self.strengths, "seed": self.seed, "bs_ray": __version__}
        made["base_id"] = self.editor.model.base_id
        if words := words_said(s.card for s in self.editor.sliders.values()):
            made["words"] = words
        if edited.regions:
            made["regions"] = [region.described() for region in edited.regions]
        return encode(row, made), tuple(filter(None, [*edited.notes, self.row["note"]]))

    def sweep(self) -> Image.Image:
        """A strip with one row for each slider alone, from minus its strength to its strength."""
        mixes = [{name: share * s} for name, s in self.strengths.items() for share in SHARES]
        pictures = self._pictures(mixes)
        count = len(SHARES)
        rows = [pictures[i : i + count] for i in range(0, len(pictures), count)]
        alone = next(iter(self.strengths.values())) if len(self.strengths) == 1 else None
        columns = [
            "0" if not share else f"{share:+.0%}" if alone is None else f"{share * alone:+g}"
            for share in SHARES
        ]
        return draw_strip(rows, columns, self.names, self._title)

    def compose(self) -> Image.Image:
        """A strip: the photo, then one slider more in every picture (the paper's Fig. 3 and 5)."""
        added = [(), *accumulate([(name,) for name in self.strengths])]
        pictures = self._pictures([{n: self.strengths[n] for n in some} for some in added])
        columns = ["photo", *(f"and {name} {s:+g}" for name, s in self._named)]
        return draw_strip([pictures], columns, [""], self._title)

    @property
    def _named(self) -> list[tuple[str, float]]:
        return list(zip(self.names, self.strengths.values(), strict=True))

    @property
    def _title(self) -> str:
        settings = self.editor.settings
        mix = ", ".join(f"{name} {strength:+g}" for name, strength in self._named)
        return f"{mix}  {settings.method}, {settings.steps} steps from {settings.start:g}"

    def _edit(self, wanted: Sequence[dict[str, float]]) -> Edit:
        """The photo, with one output for each dict of strengths."""
        mixes = [self.editor.mix(strengths) for strengths in wanted]
        return Edit(self.row["sha256"], self.row["pixels"], mixes, self.seed, boxes=self.boxes)

    def _pictures(self, wanted: Sequence[dict[str, float]]) -> list[np.ndarray]:
        """uint8 [h, w, 3] for each dict of strengths, computed together: the photo, or what is
        around its regions."""
        outputs = outputs_of(self.editor.edit([self._edit(wanted)])[0])
        left, top, right, bottom = surroundings(outputs[0].regions, outputs[0].pixels.shape[:2])
        return [to_uint8(output.pixels[top:bottom, left:right]) for output in outputs]


def strengths_of(given: list[str]) -> dict[str, float]:
    """`name=strength` texts as slider -> strength, in order. Raises JobError."""
    found: dict[str, float] = {}
    for text in given:
        name, equals, strength = text.rpartition("=")
        try:
            found[name] = float(strength)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise JobError(f"slider: got {text!r}; expected name=strength, such as smile=1.5")
    return found


def words_of(ends: tuple[str, str], strength: float, target: str | None) -> WordsAtStrength:
    """The prompts that the words move towards and away from, as a slider. Raises JobError."""
    return words_at_strength(
        {"positive": ends[0], "negative": ends[1], "target": target, "strength": strength}
    )


def boxes_of(given: list[str]) -> list[Box] | None:
    """`left,top,right,bottom` texts as boxes; None where there are none. Raises JobError."""
    boxes: list[Box] = []
    for text in given:
        try:
            left, top, right, bottom = map(float, text.split(","))
        except ValueError:
            raise JobError(
                f"box: got {text!r}; expected left,top,right,bottom in pixels, such as "
                "40,30,140,150"
            ) from None
        boxes.append((left, top, right, bottom))
    return boxes or None


def _read(photo: Path) -> DecodedRow:
    if not photo.is_file():
        raise EditError(f"photo: got {photo}, which is not a file; expected an image file")
    row = decode(photo.name, photo.read_bytes(), max_pixels=MAX_PIXELS, keep_source=True)
    if is_quarantined(row):
        raise EditError(f"photo: got {photo}, {row['reason']}; expected a whole photo")
    return row
