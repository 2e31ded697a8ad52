"""What a judge is: the faces of all kinds of judges, whoever trained them, and what they look at.

Legend: pictures are K versions of one photo, uint8 RGB [H, W, 3], each of the photo's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from bs_ray.images.faces import Face, FaceDetector
from bs_ray.images.regions import Region, crop

Pictures = Sequence[np.ndarray]


class JudgeUnavailable(ValueError):
    """A judge that is not at hand; the message says got, expected and what to do."""


@dataclass(frozen=True)
class Card:
    """Which judge it is, as reports name it."""

    name: str
    """Unique among the judges of a report, and fit for a column's name."""
    version: str
    """Of its package, or `sha256:` and twelve digits of its weights."""
    licence: str
    what: str
    """What its numbers mean, as a sentence."""
    trunk: str = ""
    """The trained network that it stands on, where the perceptual loss of a training may have used
    the same: `vgg16`, or `sha256:` and twelve digits."""


@dataclass(frozen=True)
class Subject:
    """A photo, and where judges look at it. Found once, on the photo, and reused for its edits: so
    a detector's jitter is no part of what is measured."""

    photo: np.ndarray
    """uint8 RGB [H, W, 3]."""
    face: Face | None = None
    """What judges of faces look at."""
    region: Region | None = None
    """What judges of whole pictures look at, instead of all of it."""

    def seen(self, pictures: Pictures, max_px: int) -> list[np.ndarray]:
        """What judges of whole pictures look at: the region, or all of each picture.

        max_px: what is longer than that is resized to it.
        """
        if self.region is not None:
            side = min(max_px, max(1, round(self.region.side)))
            return [crop(picture, self.region, side) for picture in pictures]
        return [_at_most(picture, max_px) for picture in pictures]


def _at_most(picture: np.ndarray, max_px: int) -> np.ndarray:
    height, width = picture.shape[:2]
    if (longer := max(height, width)) <= max_px:
        return picture
    size = max(1, round(width * max_px / longer)), max(1, round(height * max_px / longer))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def subject_of(photo: np.ndarray, detector: FaceDetector | None) -> Subject:
    """A photo with its largest face; detector None: no judge asks for one."""
    return Subject(photo, largest(detector.find(photo) if detector else []))


def largest(faces: Sequence[Face]) -> Face | None:
    """The face of the largest area, since a bystander's at the border is often tall and narrow;
    None where there is none."""
    return max(faces, key=lambda face: face.area, default=None)


class DistanceJudge(Protocol):
    """Says how far pictures are from the photo that they were made from."""

    card: Card
    needs_face: bool
    """Whether its numbers are nan where the subject has no face."""

    def distances(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """float64 [K]: 0 for the photo itself, larger for what differs more."""


class EmbeddingJudge(DistanceJudge, Protocol):
    """Says where pictures lie in a space of features."""

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """float32 [K, D], of the places where the subject says to look."""

    def between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Distances of embeddings [..., D], row by row: float64 [...]."""


class IdentityJudge(EmbeddingJudge, Protocol):
    """Tells people apart."""

    same_below: float
    """Faces at a smaller distance count as the same person's; nan where nobody has said."""


@dataclass(frozen=True)
class Reading:
    """One number that an attribute judge reads."""

    name: str
    unit: str


class AttributeJudge(Protocol):
    """Reads attributes off a face."""

    card: Card
    needs_face: bool
    readings: tuple[Reading, ...]

    def read(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """float64 [K, len(readings)], not rounded, so that every move shows."""


class TextJudge(EmbeddingJudge, Protocol):
    """Says how well pictures fit texts."""

    def scores(self, subject: Subject, pictures: Pictures, texts: Sequence[str]) -> np.ndarray:
        """float64 [K, len(texts)]: 100 x the cosine of picture and text."""


class Embedding:
    """The part that all judges by embeddings share: `distances` from `embed` and `between`."""

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        raise NotImplementedError

    def between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """1 less the cosine of the angle between embeddings [..., D]."""
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        return 1 - (one * other).sum(-1) / np.maximum(norms, 1e-12)

    def distances(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See DistanceJudge."""
        embedded = self.embed(subject, [subject.photo, *pictures])
        return self.between(embedded[1:], embedded[:1])


@lru_cache(maxsize=64)
def digest(file: Path) -> str:
    """`sha256:` and the first twelve hex digits of a file's, which name its weights."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()[:12]
