"""An identity judge from an ONNX file: alignment by landmarks, and what the network is shown."""

from pathlib import Path

import numpy as np
import pytest

from bs_ray.images.faces import Face
from bs_ray.judges.judge import JudgeUnavailable, Subject
from bs_ray.judges.onnx import PX, OnnxIdentity, aligned, similarity

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


# As ArcFace's authors publish them, counted from the first pixel's middle; here from its corner.
PLACES = 0.5 + np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    """[1, 3, 112, 112] -> [1, 6]: the mean of each channel, in both halves of the square."""
    halves = np.zeros((PX, 2), np.float32)
    halves[: PX // 2, 0] = halves[PX // 2 :, 1] = 2 / PX
    columns = onnx.helper.make_node("MatMul", ["faces", "halves"], ["columns"])
    rows = onnx.helper.make_node("ReduceMean", ["columns"], ["means"], axes=[2], keepdims=0)
    flat = onnx.helper.make_node("Flatten", ["means"], ["embedding"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [columns, rows, flat],
        "embedder",
        [value("faces", onnx.TensorProto.FLOAT, [1, 3, PX, PX])],
        [value("embedding", onnx.TensorProto.FLOAT, [1, 6])],
        [onnx.numpy_helper.from_array(halves, "halves")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    file = tmp_path / "mine.onnx"
    onnx.save(model, file)
    return file


def photo_of(turn: complex, move: complex, px: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A photo that shows a dot at each of ArcFace's places after turning and moving, and where."""
    there = turn * (PLACES @ [1, 1j]) + move
    points = np.stack([there.real, there.imag], 1)
    y, x = np.mgrid[:px, :px] + 0.5
    dots = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 6.0**2)) for a, b in points)
    return np.rint(255 * np.clip(dots, 0, 1))[..., None].repeat(3, 2).astype(np.uint8), points


@pytest.mark.parametrize("turn", [2.0, 2.5 * np.exp(0.4j), 3 * np.exp(-0.9j)])
def test_landmarks_come_where_arcface_expects_them(turn: complex) -> None:
    photo, points = photo_of(turn, complex(150, 60) if turn.imag >= 0 else complex(20, 250), 500)
    face = aligned(photo, similarity(points.astype(np.float32)))[..., 0].astype(float)
    assert face.shape == (PX, PX)
    y, x = np.mgrid[:PX, :PX] + 0.5
    for a, b in PLACES:
        near = face * (np.hypot(x - a, y - b) < 6)
        middle = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
        assert middle == pytest.approx([a, b], abs=0.25)


def test_the_network_is_shown_the_aligned_face(embedder: Path) -> None:
    judge = OnnxIdentity(embedder)
    _, points = photo_of(1.0, complex(40, 40), 200)
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[:, :96] = [255, 0, 127]  # the square begins at 40; its middle is at 96
    subject = Subject(photo, Face((0, 0, 1, 1), points.astype(np.float32)))
    red, _, green, _, blue, _ = judge.embed(subject, [photo])[0]
    assert (red, green) == pytest.approx((1, -1), abs=1e-4) and abs(blue) < 0.01
    assert judge.embed(subject, [photo])[0][1] == pytest.approx(-1, abs=1e-4)
    assert judge.distances(subject, [photo, photo[:, ::-1]])[0] == pytest.approx(0, abs=1e-6)
    assert judge.distances(subject, [photo[:, ::-1]])[0] > 0.1
    assert judge.card.name == "identity-mine" and np.isnan(judge.same_below)


def test_no_face_no_number(embedder: Path) -> None:
    photo = np.zeros((50, 50, 3), np.uint8)
    found = OnnxIdentity(embedder).distances(Subject(photo), [photo, photo])
    assert found.shape == (2,) and np.isnan(found).all()


def test_what_is_no_embedder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailable, match=r"got .*none.onnx, which is no file; expected"):
        OnnxIdentity(tmp_path / "none.onnx")
