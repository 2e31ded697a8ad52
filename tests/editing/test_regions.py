"""Editing regions: a face in a photo is edited as if it were alone, and nothing else moves."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Edit, EditError, Editor, Outcome, outputs_of, to_uint8
from bs_ray.images.faces import Face
from bs_ray.images.pixels import pixels_of
from bs_ray.images.regions import FEATHER, Region, crop
from bs_ray.models import load_base
from bs_ray.testing import edit_of, random_slider
from bs_ray.tiny.faces import render, sample_scenes

FACES = EditorSettings(steps=3, region="face", face_margin=0.0)
BOXES = EditorSettings(steps=3, region="boxes", face_margin=0.0)
PHOTO = EditorSettings(steps=3)
MIX = {"smile": 12.0, "age": -12.0}
"""Strong, since the sliders have random weights: faces move by some 10 levels on average."""
INNER = slice(math.ceil(64 * FEATHER), 64 - math.ceil(64 * FEATHER))
"""Of a view's rows and columns, those where the mask is 1."""


class Told:
    """A detector that has been told where the faces are."""

    def __init__(self) -> None:
        self.faces: list[Face] = []
        self.asked = 0

    def find(self, pixels: np.ndarray) -> list[Face]:
        self.asked += 1
        return self.faces


@pytest.fixture(scope="module")
def model(random_base):
    return load_base(str(random_base))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def editor(model, told: Told) -> Iterator[Editor]:
    sliders = [random_slider(model, name, seed) for seed, name in enumerate(("smile", "age"))]
    editor = Editor(model, sliders, FACES, detector=told)
    yield editor
    editor.close()
    model.framing = None


def landscape(height: int = 200, width: int = 300) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 160 // width, 90 + y * 120 // height, 200 - y // 2], -1).astype(np.uint8)


def faces(count: int) -> np.ndarray:
    """Drawn faces, uint8 [count, 64, 64, 3]."""
    return pixels_of(render(sample_scenes(count, 3)))


def planted(*corners: tuple[int, int]) -> np.ndarray:
    """A landscape with a face at each corner (left, top), as far as it is within the photo."""
    photo = landscape()
    for (left, top), face in zip(corners, faces(len(corners)), strict=True):
        y, x = max(top, 0), max(left, 0)
        within = photo[y : top + 64, x : left + 64]
        within[:] = face[y - top :, x - left :][: within.shape[0], : within.shape[1]]
    return photo


def box_at(left: float, top: float, side: float = 64) -> Face:
    return Face((left, top, left + side, top + side))


def run(editor: Editor, *edits: Edit) -> list[np.ndarray]:
    return [outputs_of(outcome)[0].pixels for outcome in editor.edit(edits)]


def blocks(change: np.ndarray) -> np.ndarray:
    """A view's change over blocks of 4 x 4 pixels, where the mask is 1: what is as fine as a pixel
    cannot come through a turn and back."""
    return change[8:56, 8:56].reshape(12, 4, 12, 4, 3).mean(axis=(1, 3))


def alone(editor: Editor, key: str, view: np.ndarray, mix: dict[str, float] = MIX) -> np.ndarray:
    """The edit of a view that is a photo of its own."""
    [found] = run(editor, edit_of(editor, key, view, mix, settings=PHOTO))
    return found


def untouched(before: np.ndarray, after: np.ndarray, regions: Sequence[Region]) -> bool:
    outside = np.ones(before.shape[:2], bool)
    for region in regions:
        left, top, right, bottom = (max(0, at) for at in region.bounds)
        outside[top:bottom, left:right] = False
    return np.array_equal(before[outside], after[outside]) and bool(outside.any())


def test_a_planted_face_is_edited_as_if_it_were_alone(editor: Editor, told: Told) -> None:
    photo = planted((90, 50))
    told.faces = [box_at(90, 50)]
    [outcome] = editor.edit([edit_of(editor, "k", photo, MIX)])
    [output] = outputs_of(outcome)
    assert output.regions == (Region(122, 82, 64),)
    expected = alone(editor, "k", faces(1)[0])
    found = output.pixels[50:114, 90:154]
    assert np.abs(expected - faces(1)[0]).max() > 5
    assert np.abs(found - expected)[INNER, INNER].max() < 0.01
    assert untouched(photo, output.pixels, output.regions)


@pytest.mark.parametrize("side", [40, 160])
def test_smaller_and_larger_ones_too(editor: Editor, told: Told, side: int) -> None:
    """The change is the one of the view, resampled: its mean is kept."""
    photo = landscape()
    face = np.asarray(Image.fromarray(faces(1)[0]).resize((side, side), Image.Resampling.BICUBIC))
    photo[20 : 20 + side, 60 : 60 + side] = face
    told.faces = [box_at(60, 20, side)]
    [found] = run(editor, edit_of(editor, "k", photo, MIX))
    view = crop(photo, Region(60 + side / 2, 20 + side / 2, side), 64)
    change = alone(editor, "k", view) - view
    whole = np.stack(
        [
            np.asarray(Image.fromarray(c.copy()).resize((side, side), Image.Resampling.BICUBIC))
            for c in np.moveaxis(change, -1, 0)
        ],
        axis=-1,
    )
    inner = slice(math.ceil(side * FEATHER) + 1, -math.ceil(side * FEATHER) - 1)
    there = (found - photo)[20 : 20 + side, 60 : 60 + side]
    clipped = np.clip(face + whole, 0, 255) - face
    assert np.abs(there - clipped)[inner, inner].mean() < 0.1 * np.abs(clipped).mean()
    assert untouched(photo, found, [Region(60 + side / 2, 20 + side / 2, side)])


def test_several_faces_share_a_batch_with_other_photos(editor: Editor, told: Told) -> None:
    """Each has its own noise, the first that of the photo; companions change nothing."""
    told.faces = [box_at(10, 20), box_at(200, 100)]
    photo, other = planted((10, 20), (200, 100)), planted((10, 20), (200, 100))[:, ::-1].copy()
    calls = []
    predict = editor.predict
    editor.predict = lambda *args: calls.append(len(args[0])) or predict(*args)  # type: ignore
    both = run(editor, *(edit_of(editor, k, p, MIX) for k, p in (("k", photo), ("o", other))))
    editor.predict = predict  # type: ignore[method-assign]
    assert set(calls) == {8}  # base and edit of four regions
    for (left, top), key, face in zip([(10, 20), (200, 100)], ("k", "k#1"), faces(2), strict=True):
        found = both[0][top : top + 64, left : left + 64]
        assert np.abs(found - alone(editor, key, face))[INNER, INNER].max() < 0.01
    [single] = run(editor, edit_of(editor, "k", photo, MIX))
    assert np.abs(single - both[0]).max() < 0.01


def test_dozens_of_faces_are_edited_some_at_a_time(editor: Editor, told: Told) -> None:
    """So the model's memory does not depend on how many faces a photo has."""
    told.faces = [box_at(20 * (i % 10), 30 * (i // 10)) for i in range(40)]
    photo, sizes = planted((10, 20), (200, 100)), []
    predict = editor.predict
    editor.predict = lambda *args: sizes.append(len(args[0])) or predict(*args)  # type: ignore
    [found] = run(editor, edit_of(editor, "k", photo, MIX))
    editor.predict = predict  # type: ignore[method-assign]
    assert max(sizes) == 32 and min(sizes) == 16  # base and edit of 16 regions, and of the last 8
    assert np.abs(found - photo).max() > 5


def test_overlapping_faces_and_faces_at_the_border(editor: Editor, told: Told) -> None:
    photo = planted((-20, -10), (100, 60), (130, 70))
    told.faces = [box_at(-20, -10), box_at(100, 60), box_at(130, 70)]
    [outcome] = editor.edit([edit_of(editor, "k", photo, MIX)])
    [output] = outputs_of(outcome)
    regions = output.regions
    assert len(regions) == 3 and untouched(photo, output.pixels, regions)
    assert (
        np.isfinite(output.pixels).all() and 0 <= output.pixels.min() <= output.pixels.max() <= 255
    )
    views = [crop(photo, region, 64) for region in regions]
    first = alone(editor, "k", views[0])
    assert np.abs(output.pixels[:40, :30] - first[10:50, 20:50]).max() < 0.01
    # Where only one of two has a mask, it is as if it were alone.
    second = alone(editor, "k#1", views[1])
    assert np.abs(output.pixels[67:117, 107:130] - second[7:57, 7:30]).max() < 0.01


@pytest.mark.parametrize("degrees", [25, -80])
def test_a_rolled_face_is_seen_upright(editor: Editor, told: Told, degrees: int) -> None:
    """By its eyes, where the base says where it expects them."""
    editor.model.framing = ((0.3, 0.4), (0.7, 0.4))
    region = Region(150, 100, 64, math.radians(degrees))
    face = Image.fromarray(np.pad(faces(1)[0], ((18, 18), (18, 18), (0, 0)), mode="edge"))
    photo = landscape()
    photo[50:150, 100:200] = np.asarray(face.rotate(-degrees, Image.Resampling.BICUBIC))
    cos, sin = math.cos(region.angle), math.sin(region.angle)
    marks = np.zeros((5, 2), np.float32)
    for row, (u, v) in enumerate(editor.model.framing):
        x, y = (u - 0.5) * 64, (v - 0.5) * 64
        marks[row] = 150 + x * cos - y * sin, 100 + x * sin + y * cos
    told.faces = [Face((118, 68, 182, 132), marks)]
    [outcome] = editor.edit([edit_of(editor, "k", photo, MIX)])
    [output] = outputs_of(outcome)
    [seen] = output.regions
    assert (seen.x, seen.y, seen.side) == pytest.approx((150, 100, 64), abs=1e-3)
    assert math.degrees(seen.angle) == pytest.approx(degrees, abs=1e-3)
    view = crop(photo, seen, 64)
    assert np.abs(view.astype(int) - faces(1)[0])[INNER, INNER].mean() < 4
    edited = crop(to_uint8(output.pixels), seen, 64).astype(float)
    expected = alone(editor, "k", view)
    found, wanted = (blocks(picture - view) for picture in (edited, expected))
    assert np.abs(wanted).mean() > 2
    assert np.abs(found - wanted).mean() < 0.15 * np.abs(wanted).mean()
    assert untouched(photo, output.pixels, output.regions)


def test_strength_0_is_the_photo_bit_for_bit(editor: Editor, told: Told) -> None:
    told.faces = [box_at(10, 20), box_at(20, 40, 90)]
    photo = planted((10, 20))
    [outcome] = editor.edit([edit_of(editor, "k", photo, {"smile": 0.0}, MIX, {})])
    same, moved, none = (output.pixels for output in outputs_of(outcome))
    assert np.array_equal(same, photo) and np.array_equal(none, photo)
    assert not np.array_equal(moved, photo)


def test_several_mixes_are_the_same_alone(editor: Editor, told: Told) -> None:
    told.faces = [box_at(10, 20), box_at(200, 100)]
    photo = planted((10, 20), (200, 100))
    [outcome] = editor.edit([edit_of(editor, "k", photo, {"smile": 1.0}, MIX)])
    for output, mix in zip(outputs_of(outcome), ({"smile": 1.0}, MIX), strict=True):
        [found] = run(editor, edit_of(editor, "k", photo, mix))
        assert np.abs(output.pixels - found).max() < 0.01


def test_a_mask_holds_within_regions(editor: Editor, told: Told) -> None:
    told.faces = [box_at(90, 50)]
    photo, mask = planted((90, 50)), np.zeros((200, 300), np.float32)
    mask[:, :120] = 1
    [found] = run(editor, edit_of(editor, "k", photo, MIX, mask=mask))
    assert np.array_equal(found[:, 120:], photo[:, 120:])
    assert not np.array_equal(found[:, :120], photo[:, :120])


@pytest.mark.parametrize(
    ("settings", "sides"),
    [
        ({"faces": "all"}, [90, 64, 40]),
        ({"faces": "largest"}, [90]),
        ({"faces": 2}, [90, 64]),
        ({"face_min_px": 50}, [90, 64]),
        ({"face_min_px": 50, "face_margin": 0.5}, [180, 128]),
    ],
)
def test_which_faces(editor: Editor, told: Told, settings: dict, sides: list[int]) -> None:
    told.faces = [box_at(200, 20, 64), box_at(10, 20, 90), box_at(100, 100, 40)]
    given = FACES.model_copy(update=settings)
    located = editor.located(edit_of(editor, "k", landscape(), MIX, settings=given))
    assert [region.side for region in located.regions or ()] == sides


def test_where_no_face_is_found(editor: Editor, told: Told) -> None:
    photo = landscape(60, 80)
    whole = FACES.model_copy(update={"no_face": "photo"})
    edits = [
        edit_of(editor, "k", photo, MIX),
        edit_of(editor, "k", photo, MIX, settings=whole),
        edit_of(editor, "k", photo, MIX, settings=PHOTO),
    ]
    left, fallen, plain = (outputs_of(outcome)[0] for outcome in editor.edit(edits))
    assert np.array_equal(left.pixels, photo)
    assert left.notes == ("no face was found; nothing was edited",)
    assert np.abs(fallen.pixels - plain.pixels).max() < 0.01
    assert fallen.notes == ("no face was found; the whole photo was edited",)
    assert left.regions == fallen.regions == plain.regions == () and not plain.notes


def test_boxes_of_the_caller(editor: Editor, told: Told) -> None:
    """They are edited as found faces are, and nobody looks for others."""
    photo = planted((90, 50))
    told.faces = [box_at(90, 50)]
    [found] = run(editor, edit_of(editor, "k", photo, MIX))
    assert told.asked == 1
    boxes = [(90.0, 50.0, 154.0, 114.0)]
    for settings in (BOXES, FACES):
        edit = edit_of(editor, "k", photo, MIX, settings=settings, boxes=boxes)
        assert np.abs(run(editor, edit)[0] - found).max() < 0.01
    [none] = run(editor, edit_of(editor, "k", photo, MIX, settings=BOXES, boxes=[]))
    assert np.array_equal(none, photo)
    assert told.asked == 1


@pytest.mark.parametrize(
    ("settings", "boxes", "message"),
    [
        (BOXES, None, "got no boxes; expected some, since editor.region is boxes"),
        (PHOTO, [(0, 0, 9, 9)], "got boxes; expected none, since editor.region is photo"),
        (BOXES, [(5, 5, 5, 9)], r"got box \[5, 5, 5, 9\]; expected \[left, top, right, bottom\]"),
        (BOXES, [(0, 9, 9, 0)], "top < bottom"),
        (BOXES, [(0, 0, math.nan, 9)], "got box"),
        (BOXES, [(0, 0, 9)], "got box"),
        (BOXES, [(400, 0, 500, 9)], "within 300 x 200"),
    ],
)
def test_wrong_boxes_are_the_edit_s_own_error(editor: Editor, settings, boxes, message) -> None:
    wrong = edit_of(editor, "k", landscape(), MIX, settings=settings, boxes=boxes)
    right = edit_of(editor, "k", landscape(), MIX, settings=PHOTO)
    outcomes: list[Outcome] = editor.edit([wrong, right])
    with pytest.raises(EditError, match=message):
        outputs_of(outcomes[0])
    assert isinstance(outcomes[1], list)


def test_regions_are_looked_for_once(editor: Editor, told: Told) -> None:
    told.faces = [box_at(90, 50)]
    located = editor.located(edit_of(editor, "k", planted((90, 50)), MIX))
    assert editor.located(located) is located
    assert np.array_equal(*run(editor, located, replace(located)))
    assert told.asked == 1
