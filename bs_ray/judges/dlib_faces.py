"""dlib: five landmarks of a face, faces cut out along them, and 128 numbers that tell people apart.

The only place that imports dlib.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bs_ray.images.faces import Face
from bs_ray.judges.judge import Card, Embedding, Pictures, Subject
from bs_ray.judges.packages import need, package_file, package_version

_MODELS = "face_recognition_models"


class Landmarks:
    """dlib's five-point predictor."""

    def __init__(self, file: Path):
        self._file = file

    @cached_property
    def _predictor(self) -> Any:
        import dlib

        return dlib.shape_predictor(str(self._file))

    def find(self, photo: np.ndarray, face: Face) -> Any:
        """dlib's `full_object_detection` of a face that was found on this photo."""
        import dlib

        box = dlib.rectangle(*(round(side) for side in face.box))
        return self._predictor(_contiguous(photo), box)


def chip(picture: np.ndarray, landmarks: Any, px: int, padding: float) -> np.ndarray:
    """The face uint8 [px, px, 3], upright and filling the square but for `padding`."""
    import dlib

    return dlib.get_face_chip(_contiguous(picture), landmarks, size=px, padding=padding)


class DlibIdentity(Embedding):
    """dlib's face recognition network: 128 numbers, Euclidean distance."""

    needs_face = True
    same_below = 0.6

    def __init__(self) -> None:
        """Raises JudgeUnavailable where a package is missing."""
        need("dlib", "dlib", _MODELS)
        self._landmarks = Landmarks(_file("shape_predictor_5_face_landmarks.dat"))
        self._weights = _file("dlib_face_recognition_resnet_model_v1.dat")
        self.card = Card(
            "dlib",
            f"dlib-bin {package_version('dlib')}, face-recognition-models "
            f"{package_version(_MODELS)}",
            "Boost (dlib), CC0 (weights)",
            "Euclidean distance of 128-d embeddings; below 0.6 they count as the same person's",
        )

    @cached_property
    def _net(self) -> Any:
        import dlib

        return dlib.face_recognition_model_v1(str(self._weights))

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge; nan without a face."""
        if subject.face is None:
            return np.full((len(pictures), 128), np.nan, np.float32)
        landmarks = self._landmarks.find(subject.photo, subject.face)
        found = [self._net.compute_face_descriptor(_contiguous(p), landmarks) for p in pictures]
        return np.array(found, np.float32)

    def between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """See EmbeddingJudge: Euclidean."""
        return np.linalg.norm(np.asarray(one, np.float64) - other, axis=-1)


def _file(name: str) -> Path:
    return package_file("dlib", _MODELS, "models", name)


def _contiguous(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture)
