"""ONNX Runtime for judges, and an identity judge from any file with ArcFace's face."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bs_ray.judges.judge import Card, Embedding, JudgeUnavailable, Pictures, Subject, digest
from bs_ray.judges.packages import need

PX = 112
_PLACES = 0.5 + np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Where ArcFace (arXiv 1801.07698) and its kin expect the eyes, the nose and the corners of the
mouth: (x, y) in a square of 112 px whose first pixel covers [0, 1); theirs has its middle at 0."""


def session(file: Path) -> Any:
    """A network on the CPU, on one thread, that answers the same whatever else runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of unused numbers in the file
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class OnnxIdentity(Embedding):
    """An embedder of faces: float32 [B, 3, 112, 112], RGB in [-1, 1], to [B, D]; cosine distance.

    Nobody has said below which distance its faces are the same person's.
    """

    needs_face = True
    same_below = float("nan")

    def __init__(self, file: Path):
        """Raises JudgeUnavailable where the file or ONNX Runtime is missing."""
        need(str(file), "onnxruntime")
        if not file.is_file():
            raise JudgeUnavailable(
                f"identity judge: got {file}, which is no file; expected an ONNX embedder of "
                "faces, or `dlib`"
            )
        self._file = file
        self.card = Card(
            f"identity-{file.stem}",
            digest(file),
            "unknown: it is the file's",
            "1 less the cosine of embeddings; faces are aligned by five landmarks, as for ArcFace",
        )

    @cached_property
    def _net(self) -> Any:
        net = session(self._file)
        shapes = [list(entry.shape) for entry in net.get_inputs()]
        if len(shapes) != 1 or shapes[0][1:] != [3, PX, PX]:
            raise JudgeUnavailable(
                f"identity judge {self._file}: got inputs {shapes}; expected one of "
                f"[batch, 3, {PX}, {PX}]"
            )
        return net

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge; nan without a face or its landmarks."""
        net = self._net
        if subject.face is None or subject.face.landmarks is None:
            found = [np.full(_width(net), np.nan, np.float32) for _ in pictures]
        else:
            turn = similarity(subject.face.landmarks)
            faces = [aligned(picture, turn).astype(np.float32) for picture in pictures]
            name = net.get_inputs()[0].name
            # One at a time, since many such files fix the batch to 1.
            inputs = [((face - 127.5) / 127.5).transpose(2, 0, 1)[None] for face in faces]
            found = [net.run(None, {name: one})[0][0] for one in inputs]
        return np.stack(found)


def _width(net: Any) -> int:
    width = net.get_outputs()[0].shape[-1]
    return width if isinstance(width, int) else 1


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """[2, 3]: takes (x, y, 1) of the photo to the square of 112 px: turned, scaled and moved so
    that five landmarks [5, 2] come as near to their places there as they can (least squares)."""
    here = landmarks.astype(float) @ [1, 1j]
    there = _PLACES @ [1, 1j]
    centred = here - here.mean()
    turn = (centred.conj() @ (there - there.mean())) / (abs(centred) ** 2).sum()
    move = there.mean() - turn * here.mean()
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def aligned(picture: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The face, uint8 [112, 112, 3]. Beyond the picture's border it is black."""
    back = np.linalg.inv(np.vstack([turn, [0, 0, 1]]))[:2]
    image = Image.fromarray(picture)
    numbers = tuple(back.ravel().tolist())
    size, bilinear = (PX, PX), Image.Resampling.BILINEAR
    return np.asarray(image.transform(size, Image.Transform.AFFINE, numbers, bilinear))
