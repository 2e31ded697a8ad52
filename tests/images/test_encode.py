"""Files come out like they went in."""

import json
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from bs_ray.images.decode import decode
from bs_ray.images.deep import halves, png_of, shallow
from bs_ray.images.encode import encode, not_written, read_provenance
from bs_ray.images.rows import DecodedRow, is_quarantined
from bs_ray.images.tiff import deepened

Save = Callable[..., bytes]
MADE = {"source_sha256": "ab", "sliders": {"smile@1": 1.0}, "seed": 0}
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]


def edited(data: bytes, max_pixels: int = 10_000) -> DecodedRow:
    """A photo as the editor would hand it on, a little lighter."""
    row = decode("k", data, max_pixels=max_pixels)
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
    assert difference <= (9 if kind == "JPEG" else 0)
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


def test_a_jpeg_is_compressed_as_it_was(gradient: np.ndarray, saved: Save) -> None:
    photo = Image.fromarray(gradient).resize((360, 240))
    source = saved(photo, "JPEG", subsampling=2, quality=60, progressive=True)
    data = encode(edited(source, 100_000), MADE)
    with Image.open(BytesIO(source)) as before, Image.open(BytesIO(data)) as after:
        assert after.layer == before.layer  # type: ignore[attr-defined]
        assert after.quantization == before.quantization  # type: ignore[attr-defined]
        assert after.info["progressive"]
    assert len(data) < 1.2 * len(source) + 200
    with Image.open(BytesIO(encode(edited(source, 100_000), MADE, quality=95))) as asked:
        assert [layer[1:3] for layer in asked.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_a_file_without_our_provenance(gradient: np.ndarray, saved: Save) -> None:
    assert read_provenance(saved(Image.fromarray(gradient), "JPEG")) is None


# --- what a file says beside its pixels -------------------------------------------------------
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" rating="5"/></x:xmpmeta>'
IPTC = b"\x1c\x02t\x00\x05Agent"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def resources(*some: tuple[int, bytes]) -> bytes:
    return b"Photoshop 3.0\0" + b"".join(
        b"8BIM" + number.to_bytes(2, "big") + b"\0\0" + len(data).to_bytes(4, "big") + data
        + b"\0" * (len(data) % 2)
        for number, data in some
    )  # fmt: skip


def test_xmp_iptc_comment_and_dpi_are_kept(gradient: np.ndarray, saved: Save) -> None:
    plain = saved(Image.fromarray(gradient), "JPEG", xmp=XMP, comment=b"holiday", dpi=(300, 300))
    extra = segment(0xED, resources((0x0404, IPTC), (1036, b"a thumbnail")))
    row = edited(plain[:2] + extra + segment(0xEB, b"JP\0\0\x01jumb") + plain[2:])
    assert row["note"] == "APP11 JP dropped; Photoshop resources dropped"
    for kind in ("JPEG", "TIFF", "PNG", "WEBP"):
        data = encode(DecodedRow(**{**row, "format": kind}), MADE)  # type: ignore[typeddict-item]
        again = edited(data)
        assert again["side"]["xmp"] == XMP.replace(b'"6"', b'"1"')  # it is upright now
        if kind != "WEBP":
            assert again["side"]["dpi"] == pytest.approx((300, 300), abs=0.02)
        if kind in ("JPEG", "TIFF"):
            assert again["side"]["iptc"] == IPTC
        assert b"thumbnail" not in data
    assert again["note"] == ""
    with Image.open(BytesIO(encode(row, MADE))) as image:
        assert image.info["comment"] == b"holiday" and image.info["dpi"] == (300, 300)


def test_texts_colours_and_dpi_of_a_png_are_kept(gradient: np.ndarray, saved: Save) -> None:
    about = PngInfo()
    about.add_text("Author", "Ada")
    about.add(b"gAMA", (45455).to_bytes(4, "big"))
    about.add(b"tIME", bytes(7))
    row = edited(saved(Image.fromarray(gradient), "PNG", pnginfo=about, dpi=(120, 90)))
    assert row["note"] == "tIME dropped"
    first = encode(row, {"edit": 1})
    with Image.open(BytesIO(encode(edited(first), MADE))) as image:
        assert image.info["Author"] == "Ada" and image.info["gamma"] == pytest.approx(0.45455)
        assert image.info["dpi"] == pytest.approx((120, 90), abs=0.02)
        made = json.loads(image.info["bs_ray"])
    assert made["bs_ray"] == MADE and json.loads(made["before"]) == {"bs_ray": {"edit": 1}}


@pytest.mark.parametrize(
    ("kind", "channels"),
    [*(("PNG", n) for n in (1, 2, 3, 4)), *(("TIFF", n) for n in (1, 3, 4))],
)
def test_sixteen_bits_stay_sixteen(kind: str, channels: int) -> None:
    """Where the edit moved nothing every bit is the photo's; elsewhere it moves by its steps."""
    draws = np.random.default_rng(channels)
    deep = draws.integers(2000, 60_000, (24, 36, channels)).astype(np.uint16)
    if kind == "PNG":
        file = BytesIO()
        shallow(deep).save(file, "PNG")
        data = png_of(file.getvalue(), deep)
    else:
        file = BytesIO()
        halves(deep).save(file, "TIFF")
        data = deepened(file.getvalue())
    row = decode("k", data, max_pixels=10_000)
    assert not is_quarantined(row) and row["note"] == "" and row["deep"] is not None
    assert (row["deep"] == deep).all() and row["grey"] == (channels < 3)
    pixels = row["pixels"].copy()
    pixels[5:9, 7:11] += 3
    again = decode("k", encode(DecodedRow(**{**row, "pixels": pixels}), MADE), max_pixels=10_000)
    assert not is_quarantined(again) and again["deep"] is not None
    expected = deep.copy()
    expected[5:9, 7:11, : 1 if channels < 3 else 3] += 3 * 257
    assert (again["deep"] == expected).all()


def test_what_another_format_cannot_hold_is_named(gradient: np.ndarray, saved: Save) -> None:
    about = PngInfo()
    about.add_text("Author", "Ada")
    deep = Image.fromarray(gradient[..., 0].astype(np.uint16) * 257)
    row = edited(saved(deep, "PNG", pnginfo=about, dpi=(120, 90)))
    assert not_written(row, "PNG") == []
    assert not_written(row, "JPEG") == ["16 bits became 8", "texts dropped"]
    assert "dpi dropped" in not_written(row, "WEBP")
