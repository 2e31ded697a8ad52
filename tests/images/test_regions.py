"""Regions: what is cut out is what is there, and changes come back where they belong."""

import math
import tracemalloc

import numpy as np
import pytest

from bs_ray.images.faces import Face
from bs_ray.images.regions import FEATHER, Region, crop, pasted, region_of, surroundings

EYES = ((0.3, 0.4), (0.7, 0.4))


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth picture [..., 3] of any places, around 128."""
    return 128 + 60 * np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], axis=-1)


def places(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The middles of a photo's pixels."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return x, y


def seen_at(region: Region, px: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the photo the pixels of a region's view are."""
    u, v = (np.stack(places(px, px)) / px - 0.5) * region.side
    cos, sin = math.cos(region.angle), math.sin(region.angle)
    return region.x + u * cos - v * sin, region.y + u * sin + v * cos


def share(region: Region, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far places are from the region's centre, along its sides: 0.5 at its border."""
    cos, sin = math.cos(region.angle), math.sin(region.angle)
    x, y = x - region.x, y - region.y
    return np.maximum(abs(x * cos + y * sin), abs(y * cos - x * sin)) / region.side


PHOTO = np.rint(waves(*places(150, 110))).astype(np.uint8)


def test_whole_pixels_are_cut_out_as_they_are() -> None:
    assert np.array_equal(crop(PHOTO, Region(50, 40, 32), 32), PHOTO[24:56, 34:66])


@pytest.mark.parametrize("side", [30.0, 48.0, 61.7, 96.0])
@pytest.mark.parametrize("degrees", [0, 20, -90, 135])
def test_a_view_shows_what_is_there(side: float, degrees: float) -> None:
    region = Region(72.3, 55.8, side, math.radians(degrees))
    view = crop(PHOTO, region, 48)
    assert view.dtype == np.uint8 and view.shape == (48, 48, 3)
    x, y = seen_at(region, 48)
    inside = (x > 4) & (x < 146) & (y > 4) & (y < 106)
    assert inside.mean() > 0.8
    assert np.abs(view - waves(x, y))[inside].max() < 4  # half a pixel beside it would be 5 to 9


def test_what_is_too_fine_is_filtered() -> None:
    y, x = np.mgrid[0:200, 0:200]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=-1)
    for angle in (0.0, 0.4):
        view = crop(board, Region(100, 100, 128, angle), 16)
        assert np.abs(view.astype(int) - 127).max() < 6


def test_beyond_the_border_its_pixels_are_repeated() -> None:
    view = crop(PHOTO, Region(0, 55, 40), 40)
    assert (view[:, :20] == PHOTO[35:75, :1]).all()
    assert (crop(PHOTO, Region(-500, -500, 40, 0.3), 40) == PHOTO[0, 0]).all()


@pytest.mark.parametrize("side", [30.0, 48.0, 96.0])
@pytest.mark.parametrize("degrees", [0, 20, -90])
def test_a_change_comes_back_to_its_place(side: float, degrees: float) -> None:
    region = Region(72.3, 55.8, side, math.radians(degrees))
    change = (waves(*seen_at(region, 48)) - 128).astype(np.float32) / 4
    out = pasted(PHOTO, [(region, change)])
    x, y = places(150, 110)
    far = share(region, x, y)
    expected = PHOTO + (waves(x, y) - 128) / 4
    whole = far < 0.5 - FEATHER
    assert np.abs(out - expected)[whole].max() < 1
    assert np.array_equal(out[far >= 0.5], PHOTO[far >= 0.5])
    assert out.dtype == np.float32


def test_a_change_fades_without_a_seam() -> None:
    grey = np.full((80, 80, 3), 100, np.uint8)
    out = pasted(grey, [(Region(40, 40, 50), np.full((20, 20, 3), 50, np.float32))])
    assert out[40, 40, 0] == pytest.approx(150, abs=1e-3)
    assert np.abs(np.diff(out[:, :, 0], axis=0)).max() < 50 * 1.6 / (FEATHER * 50)
    assert out[40, 15, 0] - 100 < 2


def test_overlapping_regions_share() -> None:
    """Where both masks are whole the changes are averaged; alike ones give themselves."""
    regions = [Region(40, 40, 40), Region(55, 40, 40)]
    ten, thirty = (np.full((40, 40, 3), value, np.float32) for value in (10, 30))
    grey = np.full((80, 100, 3), 100, np.uint8)
    alike = pasted(grey, [(region, ten) for region in regions])
    assert alike.max() == pytest.approx(110, abs=1e-3)
    assert np.abs(alike[40, 26:69] - 110).max() < 1e-3
    mixed = pasted(grey, list(zip(regions, (ten, thirty), strict=True)))
    assert mixed[40, 47, 0] == pytest.approx(120, abs=1e-3)
    assert mixed[40, 30, 0] == pytest.approx(110, abs=1e-3)
    assert mixed[40, 65, 0] == pytest.approx(130, abs=1e-3)


def test_a_region_between_two_that_meet_is_kept() -> None:
    """Two meet in a corner, and the rectangle around them holds a third, which meets neither."""
    ten = np.full((16, 16, 3), 10, np.float32)
    regions = [Region(70, 25, 20), Region(20, 50, 40), Region(60, 65, 50), Region(25, 15, 20)]
    grey = np.full((100, 100, 3), 100, np.uint8)
    out = pasted(grey, [(region, ten) for region in regions], dtype=np.uint8)
    assert out.dtype == np.uint8
    assert all((out[int(r.y), int(r.x)] == 110).all() for r in regions)
    alone = [pasted(grey, [(region, ten)], dtype=np.uint8) for region in (regions[0], regions[3])]
    assert np.array_equal(out[:29], np.maximum(*alone)[:29])


def test_at_the_border_and_beyond_it() -> None:
    ten = np.full((16, 16, 3), 10, np.float32)
    out = pasted(PHOTO, [(Region(0, 0, 40), ten), (Region(500, 20, 40), ten)])
    assert np.abs(out[:15, :15] - PHOTO[:15, :15] - 10).max() < 1e-3
    assert np.array_equal(out[20:], PHOTO[20:]) and np.array_equal(out[:, 20:], PHOTO[:, 20:])


def test_a_mask_holds_and_colours_stay_in_range() -> None:
    mask = np.zeros(PHOTO.shape[:2], np.float32)
    mask[40:60] = 1
    out = pasted(PHOTO, [(Region(70, 50, 60), np.full((16, 16, 3), 400, np.float32))], mask)
    assert (out[50, 70] == 255).all()
    assert np.array_equal(out[:40], PHOTO[:40]) and np.array_equal(out[60:], PHOTO[60:])


def test_only_regions_take_memory() -> None:
    photo = np.zeros((1500, 2000, 3), np.uint8)
    change = np.ones((64, 64, 3), np.float32)
    tracemalloc.start()
    out = pasted(photo, [(Region(600, 600, 100, 0.1), change), (Region(1200, 700, 90), change)])
    view = crop(photo, Region(600, 600, 100, 0.1), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert view.shape == (64, 64, 3)
    assert peak < out.nbytes + 4_000_000


# --- from a face to a region --------------------------------------------------------------------
def face(angle: float = 0.0, apart: float = 20.0) -> Face:
    """A face at (60, 50) whose eyes are `apart` pixels apart, in a box of 40 x 50."""
    half = np.array([math.cos(angle), math.sin(angle)]) * apart / 2
    marks = np.zeros((5, 2), np.float32)
    marks[:2] = np.array([60, 50]) - half, np.array([60, 50]) + half
    return Face((40, 30, 80, 80), marks)


def test_without_a_framing_it_is_the_box_with_a_margin() -> None:
    assert region_of(face(), None, 0.1) == Region(60, 55, 60)
    assert region_of(Face((40, 30, 80, 80)), EYES, 0.0) == Region(60, 55, 50)


@pytest.mark.parametrize("degrees", [0, 30, -75, 170])
def test_a_framing_brings_the_eyes_to_their_places(degrees: float) -> None:
    found = face(math.radians(degrees))
    region = region_of(found, EYES, 0.3)
    assert region.side == pytest.approx(50) and math.degrees(region.angle) == pytest.approx(degrees)
    x, y = seen_at(region, 100)
    for (u, v), eye in zip(EYES, found.landmarks[:2], strict=True):
        at = round(v * 100), round(u * 100)
        assert (x[at], y[at]) == pytest.approx(eye, abs=0.8)


def test_a_face_in_profile_is_shown_too() -> None:
    assert region_of(face(apart=2.0), EYES, 0.3).side == pytest.approx(40)


def test_a_region_says_where_it_is() -> None:
    said = Region(10.123, 20, 30.5, math.pi / 6).described()
    assert said == {"x": 10.12, "y": 20, "side": 30.5, "degrees": 30}
    assert Region(10, 20, 10).bounds == (5, 15, 15, 25)


def test_a_huge_region_needs_little_memory() -> None:
    """A wide photo's square reaches far beyond its border."""
    wide = np.zeros((40, 16_000, 3), np.uint8)
    wide[:, 8_000:] = 200
    tracemalloc.start()
    view = crop(wide, Region(8_000, 20, 16_000), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (view[:, :30] == 0).all() and (view[:, 34:] == 200).all()
    assert peak < 150e6


def test_surroundings_show_every_region_and_end_at_the_border() -> None:
    near, far = Region(50, 40, 40), Region(150, 60, 20)
    assert surroundings([near], (100, 200)) == (20, 10, 80, 70)  # a quarter of 40 on every side
    assert surroundings([near, far], (100, 165)) == (20, 10, 165, 80)
    assert surroundings([], (100, 200)) == (0, 0, 200, 100)
