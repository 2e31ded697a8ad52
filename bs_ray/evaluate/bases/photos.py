"""A base of photographs by itself, on photos that it was not trained on and by public judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps

from bs_ray.config import EvalJob
from bs_ray.editing.locate import Sight, locate
from bs_ray.evaluate.bases import Sheet
from bs_ray.evaluate.bases.nearest import nearest_figures, nearest_sheet
from bs_ray.evaluate.intervals import interval
from bs_ray.evaluate.metrics import psnr_figures
from bs_ray.evaluate.splits import Item
from bs_ray.evaluate.splits.photos import BESIDE, Photos
from bs_ray.images.faces import CenterFace, FaceDetector
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.images.sheets import draw_strip
from bs_ray.judges.judge import EmbeddingJudge, subject_of
from bs_ray.judges.kid import kid
from bs_ray.judges.load import Panel
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import sample_euler
from bs_ray.tiny.photo.captions import AGES

Row = dict[str, Any]

_STEPS = 20
_SHOWN = 10
"""Pictures in a row of a sheet."""
_SHOWN_PX = 128
_OLD = next(age for age, words in AGES if "old" in words)
_NOT_YOUNG = next(age for age, words in AGES if "middle aged" in words)
OLD_FROM = (_OLD + _NOT_YOUNG) / 2
"""Years from which a generation counts as old. It was captioned old or young, and tiny-photo's
captions say the one from 58 on and the other below 36, so the middle of the two decides."""


@dataclass(frozen=True)
class Side:
    """One thing that a caption says, in one of two ways."""

    words: tuple[str, str]
    """Where it is false, and where it is true."""
    reading: str
    """Of a judge."""
    holds: Callable[[float], bool]
    """Whether it is true by that reading."""
    rule: str
    """The same in words."""


def _below_half(value: float) -> bool:
    return value < 0.5


def _from_half(value: float) -> bool:
    return value >= 0.5


def _is_old(value: float) -> bool:
    return value >= OLD_FROM


SIDES = {
    "man": Side(("woman", "man"), "woman", _below_half, "below 0.5"),
    "old": Side(("young", "old"), "age", _is_old, f"{OLD_FROM:g} years or more"),
    "smile": Side(("not smiling", "smiling"), "smile", _from_half, "0.5 or more"),
}


def wanted(number: int) -> dict[str, bool]:
    """What the caption of a generation says: the eight combinations take turns."""
    return {name: bool(number >> place & 1) for place, name in enumerate(SIDES)}


def caption(number: int) -> str:
    """The caption, such as "a photo of a man, old, smiling"."""
    noun, *rest = (SIDES[name].words[true] for name, true in wanted(number).items())
    return ", ".join([f"a photo of a {noun}", *rest])


class PhotoBase:
    """Measures a base on the photos of a split.

    A row is `of` a "generation", of a "photo" of the split, or of a "neighbour": a photo of people
    that are not held out, which an embedded base was trained on. Every picture is what the base
    sees or makes, so faces are found and judged alike in all of them.
    """

    def __init__(self, job: EvalJob, split: Photos, panel: Panel):
        self._job, self._split, self._panel = job, split, panel
        described = [split.digest, [one.key for one in split.beside], panel.described()["judges"]]
        text = json.dumps(described, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    # --- rows -----------------------------------------------------------------------------------

    @cached_property
    def _detector(self) -> FaceDetector:
        return CenterFace()

    @property
    def _embedders(self) -> dict[str, EmbeddingJudge]:
        """Whose embeddings are kept: by name, the judge of sets and the one of people."""
        judges = (*self._panel.features[:1], *self._panel.identity[:1])
        return {judge.card.name: judge for judge in judges}

    @torch.no_grad()
    def rows(self, model: DiffusionModel, first: int, count: int) -> list[Row]:
        """See BaseMeasure."""
        photos = self._split.items(first, count)
        beside = self._split.beside_items(first * BESIDE, count * BESIDE)
        return [
            *self._generated(model, first, count),
            *(self._photo(model, "photo", item) for item in photos),
            *(self._photo(model, "neighbour", item) for item in beside),
        ]

    def _generated(self, model: DiffusionModel, first: int, count: int) -> list[Row]:
        numbers = range(first, first + count)
        latents = sample_euler(
            model,
            [caption(number) for number in numbers],
            [f"class-{number}" for number in numbers],
            seed=self._job.seed,
            steps=_STEPS,
            guidance_scale=self._job.guidance_scale,
        )
        drawn = pixels_of(model.decode(latents).clamp(-1, 1))
        pairs = zip(numbers, drawn, strict=True)
        return [self._judged("generation", number, picture) for number, picture in pairs]

    def _photo(self, model: DiffusionModel, of: str, item: Item) -> Row:
        """What the base sees of a photo, and for photos that are measured its round trip."""
        view = None if item.pixels is None else self._view(model, item.pixels)
        if view is None:
            return {"of": of, "item": item.number, "problem": item.problem or "no face"}
        row = self._judged(of, item.number, view)
        if of == "photo":
            image = images_of(view)[None]
            again = model.decode(model.encode(image.to(model.device))).clamp(-1, 1).cpu()
            row["squared_error"] = float((image - again).square().mean())
            row["again"] = _thumbnail(pixels_of(again)[0])
        return row

    def _view(self, model: DiffusionModel, photo: np.ndarray) -> np.ndarray | None:
        """What is edited of a photo, as the base sees it: uint8 [h, w, 3]; None without a face."""
        editor = self._job.editor
        regions, _ = locate(photo, editor, model.framing, lambda: self._detector)
        side = editor.working_px or model.native_px
        sight = Sight(side, model.multiple_px, model.framing)
        return next(iter(sight.views(photo, regions)), None)

    def _judged(self, of: str, number: int, picture: np.ndarray) -> Row:
        subject = subject_of(picture, self._detector if self._panel.needs_faces else None)
        lost = self._panel.needs_faces and subject.face is None
        row: Row = {
            "of": of,
            "item": number,
            "problem": "no face" if lost else "",
            "picture": _thumbnail(picture),
        }
        if lost:
            return row
        for judge in self._panel.attributes if of == "generation" else ():
            for reading, value in zip(
                judge.readings, judge.read(subject, [picture])[0], strict=True
            ):
                row.setdefault(reading.name, float(value))
        for name, embedder in self._embedders.items():
            row[f"{name}/embedding"] = embedder.embed(subject, [picture])[0].tobytes()
        return row

    # --- figures --------------------------------------------------------------------------------

    def figures(self, rows: pd.DataFrame) -> dict:
        """See BaseMeasure. A generation without a face is read wrong."""
        drawn, photos = _of(rows, "generation"), _of(rows, "photo")
        seen = photos.reindex(columns=["squared_error"])["squared_error"].dropna().to_numpy(float)
        if not len(seen):
            raise ValueError(
                f"base_images: got no photo of {self._split.title} that the base could be shown "
                f"({dict(photos['problem'].value_counts())}); expected photos, or with "
                "editor.region=face photos of faces"
            )
        hits = {name: _hits(drawn, name) for name in SIDES}
        read = {name: own for name, own in hits.items() if own is not None}
        return {
            "images": len(drawn),
            "photos": len(seen),
            "captions": [caption(number) for number in range(2 ** len(SIDES))],
            **psnr_figures(seen),
            "class_accuracy": {n: None if h is None else float(h.mean()) for n, h in hits.items()},
            "class_intervals": {name: interval(own) for name, own in read.items()},
            "class_rules": {name: f"{side.reading} {side.rule}" for name, side in SIDES.items()},
            "without_face": {
                "generations": int((drawn["problem"] != "").sum()),
                "photos": int((photos["problem"] == "no face").sum()),
            },
            **self._distances(rows),
        }

    def _distances(self, rows: pd.DataFrame) -> dict:
        """`kid` and `nearest`, by the judges that there are."""
        found = {}
        for name in list(self._embedders)[:1]:  # a judge of features, where there is one
            drawn, photos, beside = _embedded(rows, name)
            if min(len(drawn), len(photos)) >= 4:
                size = min(len(drawn), len(photos)) // 2  # so that subsets differ
                apart = kid(drawn, photos, size=size)
                people = kid(beside, photos, size=size).mean if len(beside) >= size else None
                found["kid"] = {
                    "features": name,
                    "mean": apart.mean,
                    "sd": apart.sd,
                    "size": size,
                    "of_photos": people,
                }
        for judge in self._panel.identity[:1]:
            drawn, photos, beside = _embedded(rows, judge.card.name)
            if len(beside) and len(drawn):
                found["nearest"] = nearest_figures(judge, drawn, photos, beside)
        return found

    # --- pictures -------------------------------------------------------------------------------

    def sheets(self, rows: pd.DataFrame) -> list[Sheet]:
        """Generations by caption, round trips, and the generations that are nearest to a photo."""
        drawn = _of(rows, "generation")
        captions = range(min(2 ** len(SIDES), len(drawn)))
        lines = [drawn[drawn["item"] % 2 ** len(SIDES) == number] for number in captions]
        across = min(_SHOWN, *map(len, lines))
        pictures = [[_opened(file) for file in line["picture"][:across]] for line in lines]
        names = [caption(number).removeprefix("a photo of a ") for number in captions]
        found = [
            Sheet(
                "generations",
                f"Generations by caption, guidance {self._job.guidance_scale:g}, {_STEPS} steps",
                draw_strip(pictures, [""] * across, names, "a photo of a ..."),
            )
        ]
        photos = _of(rows, "photo").dropna(subset=["squared_error"])[:_SHOWN]
        decibels = [f"{10 * np.log10(4 / error):.1f} dB" for error in photos["squared_error"]]
        both = [[_opened(file) for file in photos[name]] for name in ("picture", "again")]
        title = self._split.title
        found.append(
            Sheet(
                "round-trips",
                f"{title}, as the base sees them, and after its autoencoder",
                draw_strip(both, decibels, ["photo", "round trip"], title),
            )
        )
        for judge in self._panel.identity[:1]:
            name = judge.card.name
            made, beside = _pictures(drawn, name), _pictures(_of(rows, "neighbour"), name)
            if made and beside:
                text = (
                    f"The generations that are nearest to a photo of {len(beside)} that are not "
                    f"held out, by {name}'s distance"
                )
                found.append(Sheet("nearest", text, nearest_sheet(judge, made, beside)))
        return found


def _of(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    return rows[rows["of"] == what].sort_values("item")


def _hits(drawn: pd.DataFrame, name: str) -> np.ndarray | None:
    """Which generations are read as their caption says: bool [G]; None where no judge reads it."""
    side = SIDES[name]
    if side.reading not in drawn or drawn[side.reading].isna().all():
        return None
    pairs = zip(drawn["item"], drawn[side.reading], strict=True)
    return np.array(
        [np.isfinite(value) and side.holds(value) == wanted(item)[name] for item, value in pairs],
        bool,
    )


def _embedded(rows: pd.DataFrame, judge: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [N, D] of generations, photos and neighbours, of those that have one."""

    def stacked(what: str) -> np.ndarray:
        found = [_vector(stored) for stored in _with_embedding(_of(rows, what), judge)["embedding"]]
        return np.stack(found) if found else np.zeros((0, 0))

    return stacked("generation"), stacked("photo"), stacked("neighbour")


def _pictures(rows: pd.DataFrame, judge: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture, embedding) of the rows that have one."""
    own = _with_embedding(rows, judge)
    pairs = zip(own["picture"], own["embedding"], strict=True)
    return [(_opened(file), _vector(stored)) for file, stored in pairs]


def _with_embedding(rows: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Pictures and stored embeddings; no row where a judge saw nothing."""
    column = f"{judge}/embedding"
    found = rows.reindex(columns=["picture", column]).dropna(subset=[column])
    return found.rename(columns={column: "embedding"})


def _vector(stored: bytes) -> np.ndarray:
    """An embedding of a row, which is stored as bytes: Ray would make a tensor of a list."""
    return np.frombuffer(stored, np.float32).astype(np.float64)


def _thumbnail(pixels: np.ndarray) -> bytes:
    """A JPEG of _SHOWN_PX squared, for the sheets alone."""
    image = ImageOps.pad(Image.fromarray(pixels), (_SHOWN_PX, _SHOWN_PX), Image.Resampling.BICUBIC)
    file = BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def _opened(file: bytes) -> np.ndarray:
    with Image.open(BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))
