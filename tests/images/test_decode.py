"""Whatever lies in a bucket becomes pixels, or a row that says why not."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from bs_ray.images.decode import decode
from bs_ray.images.rows import DecodedRow, is_quarantined

Save = Callable[..., bytes]


def decoded(data: bytes, **options: object) -> DecodedRow:
    row = decode("k", data, max_pixels=10_000, **options)  # type: ignore[arg-type]
    assert not is_quarantined(row), row
    return row


def reason(data: bytes) -> str:
    row = decode("k", data, max_pixels=10_000)
    assert is_quarantined(row) and (row["key"], row["stage"]) == ("k", "decode")
    return row["reason"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(gradient: np.ndarray, saved: Save, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    row = decoded(saved(Image.fromarray(gradient), kind, **options))
    assert row["format"] == kind and row["lossless"] and not row["grey"]
    assert row["alpha"] is None and (row["pixels"] == gradient).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_taken_out(
    gradient: np.ndarray, saved: Save, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    row = decoded(saved(Image.fromarray(gradient), "PNG", exif=exif))
    turned = [
        gradient,
        gradient[:, ::-1],
        gradient[::-1, ::-1],
        gradient[::-1],
        gradient.swapaxes(0, 1),
        np.rot90(gradient, -1),
        gradient[::-1, ::-1].swapaxes(0, 1),
        np.rot90(gradient),
    ]
    assert np.array_equal(row["pixels"], turned[orientation - 1])
    kept = Image.Exif()
    kept.load(row["exif"])
    assert dict(kept) == {271: "Maker"}


def test_transparency_travels_beside_the_colours(gradient: np.ndarray, saved: Save) -> None:
    alpha = np.tile(np.arange(36, dtype=np.uint8), (24, 1))
    image = Image.fromarray(np.dstack([gradient, alpha]))
    row = decoded(saved(image, "PNG"))
    assert (row["pixels"] == gradient).all() and (row["alpha"] == alpha).all()
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 250, 10, 20])
    row = decoded(saved(palette, "PNG", transparency=1))
    assert row["alpha"] is not None and not row["alpha"].any()
    assert (row["pixels"] == [250, 10, 20]).all()


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_grey_photos_are_remembered_as_such(saved: Save, mode: str) -> None:
    white = {"1": 1, "L": 255, "I;16": 65535}[mode]
    row = decoded(saved(Image.new(mode, (6, 4), white), "PNG"))
    assert row["grey"] and row["pixels"].shape == (4, 6, 3) and (row["pixels"] == 255).all()


def test_sixteen_bits_are_rounded_to_eight(saved: Save) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    row = decode("k", saved(Image.fromarray(deep), "PNG"), max_pixels=65536)
    assert not is_quarantined(row) and row["note"] == "16 bits became 8"
    assert (row["pixels"][..., 0] == np.rint(deep / 257)).all()


def test_cmyk_becomes_rgb_and_says_so(saved: Save) -> None:
    row = decoded(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert row["note"] == "CMYK became RGB" and row["icc"] == b""
    red, green, blue = row["pixels"].reshape(-1, 3).mean(0)
    assert red > 200 and green < 40 and blue < 40


def test_damaged_exif_does_not_cost_the_photo(gradient: np.ndarray, saved: Save) -> None:
    data = saved(Image.fromarray(gradient), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    row = decoded(data)
    assert row["pixels"].shape == gradient.shape and row["exif"] == b""


def test_the_source_comes_along_on_demand(gradient: np.ndarray, saved: Save) -> None:
    data = saved(Image.fromarray(gradient), "JPEG")
    assert decoded(data)["source"] is None
    assert decoded(data, keep_source=True)["source"] == data


def test_reasons(gradient: np.ndarray, saved: Save) -> None:
    photo = Image.fromarray(gradient)
    assert reason(b"") == "empty: the file has no bytes"
    assert reason(b"hello, world").startswith("not an image: got content that begins b'hello, w'")
    assert reason(saved(photo, "GIF")).startswith("not an image: got content that begins b'GIF87a")
    jpeg = saved(photo, "JPEG")
    assert reason(jpeg[: len(jpeg) * 2 // 3]).startswith("truncated: ")
    png = saved(photo, "PNG", compress_level=0)
    assert reason(png[: len(png) // 2]).startswith("truncated: ")
    assert reason(b"II*\0" + bytes(20)) == "damaged: its TIFF header cannot be read"
    huge = saved(Image.new("1", (5000, 5000)), "PNG")
    assert reason(huge) == ("too many pixels: got 5000 x 5000; expected at most 10000 (max_pixels)")
    pages = saved(photo, "TIFF", save_all=True, append_images=[photo])
    assert reason(pages) == "several frames: got 2; expected a photo of one"
    assert reason(saved(Image.new("F", (4, 4)), "TIFF")).startswith("no photo: got floating-point")


def test_no_damage_raises(gradient: np.ndarray, saved: Save) -> None:
    """Flip bytes all over files of every format: each gives a row of one kind or the other."""
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        whole = np.frombuffer(saved(Image.fromarray(gradient), kind), dtype=np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            row = decode("k", data.tobytes(), max_pixels=10_000)
            assert is_quarantined(row) or row["pixels"].dtype == np.uint8
