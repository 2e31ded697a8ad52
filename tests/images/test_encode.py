"""Files come out like they went in."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from bs_ray.images.decode import decode
from bs_ray.images.encode import encode, read_provenance
from bs_ray.images.rows import DecodedRow, is_quarantined

Save = Callable[..., bytes]
MADE = {"source_sha256": "ab", "sliders": {"smile@1": 1.0}, "seed": 0}
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]


def edited(data: bytes) -> DecodedRow:
    """A photo as the editor would hand it on, a little lighter."""
    row = decode("k", data, max_pixels=10_000)
    assert not is_quarantined(row), row
    return DecodedRow(**{**row, "pixels": row["pixels"] + 3})


@pytest.mark.parametrize("kind", KINDS)
def test_same_format_same_size_deterministic(gradient: np.ndarray, saved: Save, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    row = edited(saved(Image.fromarray(gradient), kind, **options))
    data = encode(row, MADE)
    assert data == encode(row, MADE)
    again = decode("k", data, max_pixels=10_000)
    assert not is_quarantined(again) and again["format"] == kind
    difference = np.abs(again["pixels"].astype(int) - row["pixels"]).max()
    assert difference <= (6 if kind == "JPEG" else 0)
    assert read_provenance(data) == (None if kind == "BMP" else MADE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_is_kept(gradient: np.ndarray, saved: Save, kind: str) -> None:
    exif = Image.Exif()
    exif[271], exif[306], exif[274] = "Maker", "2024:05:06 07:08:09", 6
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0holiday"
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = saved(Image.fromarray(gradient), kind, exif=exif.tobytes(), icc_profile=profile)
    with Image.open(BytesIO(encode(edited(source), MADE))) as image:
        kept = image.getexif()
        assert image.size == (24, 36)  # upright
        assert (kept[271], kept[306], kept.get(274, 1)) == ("Maker", "2024:05:06 07:08:09", 1)
        assert kept.get_ifd(0x8825)[1] == "N"
        assert b"holiday" in bytes(kept.get_ifd(0x8769)[0x9286])
        assert image.info["icc_profile"] == profile


def test_transparency_and_grey_come_back(gradient: np.ndarray, saved: Save) -> None:
    alpha = Image.linear_gradient("L").resize((36, 24))
    clear = Image.fromarray(gradient)
    clear.putalpha(alpha)
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        with Image.open(BytesIO(encode(edited(saved(clear, kind, **options)), MADE))) as image:
            assert image.mode == "RGBA"
            assert np.array_equal(image.getchannel("A"), alpha)
    for kind in ("JPEG", "PNG", "TIFF", "BMP"):
        data = encode(edited(saved(Image.fromarray(gradient).convert("L"), kind)), MADE)
        with Image.open(BytesIO(data)) as image:
            assert image.mode == "L"


def test_jpeg_chroma_is_not_subsampled(gradient: np.ndarray, saved: Save) -> None:
    data = encode(edited(saved(Image.fromarray(gradient), "JPEG", subsampling=2)), MADE)
    with Image.open(BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_a_file_without_our_provenance(gradient: np.ndarray, saved: Save) -> None:
    assert read_provenance(saved(Image.fromarray(gradient), "JPEG")) is None
