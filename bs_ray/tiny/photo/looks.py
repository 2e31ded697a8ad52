"""What a face looks like, from where its landmarks lie and from faces labelled by eye.

Neither source of photos says who wears glasses or a beard, so 252 faces were labelled by eye
(looks.csv). A logistic regression on their gradients reads the others; what it is unsure of stays
unknown. The other looks are measures: how wide the jaw is, how open the mouth, how sharp the photo.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bs_ray.judges.packages import need, package_file

_CHUNK = 512
_ALIGNED = 96
_EYES_Y, _EYES_APART = 30, 36
_SIDE = 256
"""Landmarks are found on pictures of this size."""


@dataclass
class Landmarks:
    """68 landmarks of each face (dlib's order) as shares of its picture [N, 68, 2]; found: whether
    the detector saw a face there."""

    points: np.ndarray
    found: np.ndarray


class LandmarkFinder:
    """dlib's frontal face detector and its 68-point shape predictor (Kazemi & Sullivan 2014)."""

    def __init__(self) -> None:
        """Raises JudgeUnavailable where a package is missing."""
        need("landmarks", "dlib", "face_recognition_models")
        import dlib

        file = "shape_predictor_68_face_landmarks.dat"
        models = package_file("landmarks", "face_recognition_models", "models", file)
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(models))
        # Where the detector usually sees a face that is framed like these.
        self._usual = dlib.rectangle(*(round(share * _SIDE) for share in (0.07, 0.08, 0.91, 0.915)))

    def find(self, picture: Image.Image) -> tuple[np.ndarray, bool]:
        """Landmarks [68, 2] as shares of the picture, and whether a face was detected."""
        pixels = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
        boxes = self._detect(pixels, 0)
        box = max(boxes, key=lambda b: b.area()) if boxes else self._usual
        shape = self._predict(pixels, box)
        points = [(shape.part(i).x, shape.part(i).y) for i in range(68)]
        return np.array(points, np.float32) / _SIDE, bool(boxes)


def measured(pixels: np.ndarray, marks: Landmarks, tight: np.ndarray) -> dict[str, np.ndarray]:
    """Looks that are measures, float32 [N] in [0, 1], NaN where they cannot be read.

    pixels: uint8 [N, 128, 128, 3]. chubby: rank of the jaw's width over the face's height among
    frontal faces of the same framing. turned: 0.5 is frontal. blurry: rank of what edges lack.
    """
    points, count = marks.points, len(pixels)
    nose = (points[:, 30, 0] - points[:, 1, 0]) / (points[:, 15, 0] - points[:, 1, 0])
    turned = np.clip(0.5 + 2 * (nose - 0.5), 0, 1)
    jaw = _apart(points, 4, 12) / _apart(points, 27, 8)
    frontal = marks.found & (np.abs(turned - 0.5) < 0.2)
    chubby = np.full(count, np.nan, np.float32)
    for framing in (tight, ~tight):
        rows = np.flatnonzero(frontal & framing)
        chubby[rows] = _rank(jaw[rows])
    mouth = np.clip(_apart(points, 62, 66) / _apart(points, 60, 64), 0, 1)
    spread = pixels.max(3) - pixels.min(3)
    edges = np.array([_edges(p) for p in pixels])
    return {
        "chubby": chubby,
        "mouth_open": np.where(marks.found, mouth, np.nan),
        "turned": np.where(marks.found, turned, np.nan),
        "grey": (spread.mean((1, 2)) < 4).astype(np.float32),
        "blurry": 1 - _rank(edges),
    }


def _apart(points: np.ndarray, one: int, other: int) -> np.ndarray:
    return np.linalg.norm(points[:, one] - points[:, other], axis=1)


def _rank(values: np.ndarray) -> np.ndarray:
    """Each value's place among them, in [0, 1]."""
    order: np.ndarray = values.argsort().argsort()
    return order / max(1, len(values))


def _edges(pixels: np.ndarray) -> float:
    """How strong a picture's edges are: the deviation of its Laplacian."""
    grey = torch.from_numpy(pixels).float().mean(2)[None, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(F.conv2d(grey, kernel).std())


# --- glasses and beards -------------------------------------------------------------------------
def by_eye() -> dict[str, dict[str, float]]:
    """The faces labelled by eye: look -> file name -> 0 or 1."""
    found: dict[str, dict[str, float]] = {"glasses": {}, "beard": {}}
    with (Path(__file__).parent / "looks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for look, known in found.items():
                if row[look]:
                    known[row["file"]] = float(row[look])
    return found


def read_looks(
    pixels: np.ndarray, marks: Landmarks, files: list[str], never: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Glasses and beards, float32 [N]: 1, 0, or NaN where the regression is unsure.

    never: look -> rows that surely lack it, which it also learns from.
    """
    eyes, chins = [], []
    for first in range(0, len(pixels), _CHUNK):  # all at once their gradients fill 20 GB
        part = slice(first, first + _CHUNK)
        upright = [_aligned(p, m) for p, m in zip(pixels[part], marks.points[part], strict=True)]
        faces = torch.from_numpy(np.stack(upright)).permute(0, 3, 1, 2).float()
        eyes.append(_eye_features(faces))
        chins.append(_chin_features(faces))
    features = {"glasses": torch.cat(eyes), "beard": torch.cat(chins)}
    sure, found = {"glasses": (-3.0, 2.5), "beard": (-2.5, 2.0)}, {}
    for look, known in by_eye().items():
        rows = [i for i, file in enumerate(files) if file in known]
        truth = torch.tensor([known[files[i]] for i in rows])
        lacking = torch.from_numpy(np.flatnonzero(never[look]))
        score = _fit(features[look], torch.tensor(rows, dtype=torch.long), truth, lacking)
        low, high = sure[look]
        label = np.full(len(files), np.nan, np.float32)
        label[score > high], label[score < low] = 1, 0
        label[never[look]] = 0
        found[look] = label
    return found


def _aligned(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face upright, its eyes 36 pixels apart at row 30: uint8 [96, 96, 3]."""
    left, right = (
        points[rows].mean(0) * pixels.shape[0] for rows in (slice(36, 42), slice(42, 48))
    )
    middle, across = (left + right) / 2, (right - left) / _EYES_APART
    down = np.array([-across[1], across[0]])
    start = middle - across * (_ALIGNED / 2) - down * _EYES_Y
    data = (across[0], down[0], start[0], across[1], down[1], start[1])
    picture = Image.fromarray(pixels).transform(
        (_ALIGNED, _ALIGNED), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def _gradients(grey: Tensor) -> Tensor:
    """Histograms of gradients over cells of 8 x 8 (Dalal & Triggs 2005), [B, features]."""
    across = F.pad(grey[..., :, 2:] - grey[..., :, :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    size, angle = (across**2 + down**2).sqrt(), torch.atan2(down, across) % torch.pi / torch.pi * 9
    bins = [size * (1 - ((angle - k + 4.5) % 9 - 4.5).abs()).clamp(min=0) for k in range(9)]
    cells = F.avg_pool2d(torch.cat(bins, 1), 8)
    around = F.pad((cells**2).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return (cells / ((F.avg_pool2d(around, 3, 1) * 9).sqrt() + 3)).flatten(1)


def _eye_features(faces: Tensor) -> Tensor:
    return _gradients(faces.mean(1, keepdim=True)[..., 8:56, 4:92])


def _chin_features(faces: Tensor) -> Tensor:
    """Gradients of the lower face, and how its colours differ from the cheeks'."""
    cheek = faces[..., 44:54, 24:72].mean((2, 3), keepdim=True)
    colours = F.adaptive_avg_pool2d(faces[..., 54:94, 16:80] - cheek, (10, 16)).flatten(1) / 40
    edges = _gradients(faces.mean(1, keepdim=True)[..., 48:96, 16:80])
    return torch.cat([edges, colours], 1)


def _fit(features: Tensor, rows: Tensor, truth: Tensor, lacking: Tensor) -> Any:
    """Scores [N] of a logistic regression on rows labelled by eye and, lightly, on lacking ones."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-3)
    used = torch.cat([rows, lacking])
    y = torch.cat([truth, torch.zeros(len(lacking))])
    trust = torch.cat([torch.full((len(rows),), 12.0), torch.full((len(lacking),), 0.3)])
    for value in (0.0, 1.0):  # both sides weigh the same
        trust[y == value] /= 2 * trust[y == value].sum()
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=80, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(x[used] @ weight + bias, y, reduction="none")
        total = (error * trust).sum() + 1e-3 * (weight**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (x @ weight + bias).detach().numpy()
