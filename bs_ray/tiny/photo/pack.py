"""LFW and UTKFace as they are published -> the packed photos that the recipe trains on."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from bs_ray.tiny.photo.looks import LandmarkFinder, Landmarks, measured, read_looks
from bs_ray.tiny.photo.people import LFW, UTKFACE, held_out
from bs_ray.tiny.photo.photos import SIZE, encoded, save_pack

_LFW_BOX = (62, 68, 188, 194)
"""The part of a deep-funneled LFW photo of 250 px whose eyes stand where photos.EYES says."""
_HELD = 256
"""Held-out faces of each source that a pack carries, to be measured on and never trained on."""


@dataclass
class Face:
    """One face of a source: 128 x 128, its file's name, whose it is, and what the name says."""

    picture: Image.Image
    file: str
    person: str
    tight: bool
    age: float = float("nan")
    woman: float = float("nan")


def read_faces(source: Path, wanted: Callable[[str], bool] | None = None) -> Iterator[Face]:
    """Faces of one source: an LFW or UTKFace archive, or its extracted folder, in name order.

    wanted: whether to read a file, by its name within the source; by default all are read.

    Raises ValueError where it holds a file that is named like neither.
    """
    for name, data in sorted(_files(source)):
        file = PurePosixPath(name)
        if wanted and not wanted(name):
            continue
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        if match := UTKFACE.fullmatch(file.name):
            age, woman = float(match[1]), float(match[2])
            picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            yield Face(picture, file.name, file.name, True, age, woman)
        elif LFW.fullmatch(file.name):
            framed = picture.crop(_LFW_BOX).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            yield Face(framed, file.name, file.parent.name, False)
        else:
            raise ValueError(
                f"faces: got {name} in {source}; expected LFW's Name/Name_0001.jpg or UTKFace's "
                "AGE_GENDER_RACE_DATE.jpg"
            )


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.rglob("*.jpg"):
            yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                stream = archive.extractfile(member)
                assert stream
                yield member.name, stream.read()


def pack(sources: Sequence[Path], smiles: Path | None, out: Path) -> list[Path]:
    """Read, measure, label and pack all faces; the parts written.

    smiles: a CSV of `file,smile` for LFW's photos. Photos of tight framing in which no face is
    found are left out: UTKFace has some that show none.
    """
    finder = LandmarkFinder()
    faces = [face for source in sources for face in read_faces(source)]
    found = [finder.find(face.picture) for face in faces]
    marks = Landmarks(np.stack([f[0] for f in found]), np.array([f[1] for f in found]))
    labels = labelled(faces, marks, _smiles(smiles))
    tight = labels["tight"] > 0
    held = np.array([held_out(face.person) for face in faces])
    rows = np.flatnonzero(~held & (marks.found | ~tight))
    rng = np.random.default_rng(0)
    kept = [
        rng.permutation(np.flatnonzero(held & marks.found & framing))[:_HELD]
        for framing in (tight, ~tight)
    ]
    order = rng.permutation(np.concatenate([rows, *kept]))
    pictures = [encoded(faces[row].picture) for row in order]
    return save_pack(out, pictures, {k: v[order] for k, v in labels.items()}, held[order])


def labelled(
    faces: Sequence[Face], marks: Landmarks, smiles: dict[str, float]
) -> dict[str, np.ndarray]:
    """All labels of captions.LABELS, float32 [N]; NaN where neither source nor measure says."""
    pixels = np.stack([np.asarray(face.picture) for face in faces])
    tight = np.array([face.tight for face in faces])
    age = np.array([face.age for face in faces])
    woman = np.array([face.woman for face in faces])
    child = age < 12
    looks = measured(pixels, marks, tight)
    looks["chubby"][age < 10] = np.nan  # a child's jaw is wide for its face
    never = {"glasses": age < 3, "beard": child | (woman == 1)}
    return {
        "age": age,
        "woman": woman,
        "smile": np.array([smiles.get(face.file, np.nan) for face in faces]),
        **looks,
        **read_looks(pixels, marks, [face.file for face in faces], never),
        "tight": tight.astype(np.float32),
        "distorted": np.zeros(len(faces), np.float32),
    }


def _smiles(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    with path.open(newline="") as file:
        return {row["file"]: float(row["smile"]) for row in csv.DictReader(file)}
