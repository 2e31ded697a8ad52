"""How wide a jaw is for its face, measured between landmarks: no network guesses how heavy anyone
is. Unlike other judges, it looks for landmarks on every picture, since an edit moves them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bs_ray.judges.dlib_faces import Landmarks
from bs_ray.judges.judge import Card, Pictures, Reading, Subject
from bs_ray.judges.packages import need, package_file, package_version

_MODELS = "face_recognition_models"
_LEFT, _RIGHT, _CHIN, _BRIDGE = 4, 12, 8, 27
"""Of dlib's 68 landmarks: the corners of the jaw, the chin, and where the nose begins."""


class Jaw:
    """The jaw's width as a share of the height from chin to nose bridge."""

    needs_face = True
    readings = (Reading("jaw", "width / height"),)

    def __init__(self) -> None:
        """Raises JudgeUnavailable where a package is missing."""
        need("jaw", "dlib", _MODELS)
        file = "shape_predictor_68_face_landmarks.dat"
        self._landmarks = Landmarks(package_file("jaw", _MODELS, "models", file))
        self.card = Card(
            "jaw",
            f"dlib-bin {package_version('dlib')}, face-recognition-models "
            f"{package_version(_MODELS)}",
            "Boost (dlib), CC0 (landmarks); the predictor's training photos forbid commercial use",
            "the jaw's width over the height from chin to nose bridge, between 68 landmarks",
        )

    def read(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See AttributeJudge; nan without a face."""
        if subject.face is None:
            return np.full((len(pictures), 1), np.nan)
        marks = [self._landmarks.find(picture, subject.face) for picture in pictures]
        return np.array([[_apart(m, _LEFT, _RIGHT) / _apart(m, _BRIDGE, _CHIN)] for m in marks])


def _apart(marks: Any, one: int, other: int) -> float:
    a, b = marks.part(one), marks.part(other)
    return float(np.hypot(a.x - b.x, a.y - b.y))
