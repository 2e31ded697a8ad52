"""Whatever lies in a bucket becomes pixels, or a row that says why not."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from bs_ray.images.decode import decode
from bs_ray.images.encode import encode, read_provenance
from bs_ray.images.formats import FORMATS, PLUGINS
from bs_ray.images.rows import DecodedRow, is_quarantined
from bs_ray.images.sheets import draw_pairs

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


def test_sixteen_bits_are_rounded_to_eight_and_kept(saved: Save) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    row = decode("k", saved(Image.fromarray(deep), "PNG"), max_pixels=65536)
    assert not is_quarantined(row) and row["note"] == ""
    assert row["deep"] is not None and (row["deep"][..., 0] == deep).all()
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


# --- side data never decides about a photo -----------------------------------------------------
def exif_block(*entries: bytes, after: bytes = b"") -> bytes:
    """EXIF of some entries of 12 bytes, little-endian; `after` lies behind them."""
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + after
    )


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, count, value)


@pytest.mark.parametrize(
    "bad",
    [
        entry(282, 10, 1, 8 + 2 + 36 + 4),  # a rational (-1, 0)
        entry(282, 2, 7, 8 + 2 + 36 + 4),  # a number as text
        entry(282, 5, 9, 8 + 2 + 36 + 4),  # more values than the block holds
        entry(282, 77, 1, 1),  # of no type
        entry(282, 5, 2, 8),  # two values for one
        entry(0x8769, 4, 1, 4000),  # a directory outside of the block
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_bad_tag_costs_itself_alone(
    gradient: np.ndarray, saved: Save, kind: str, bad: bytes
) -> None:
    maker = entry(271, 2, 4, int.from_bytes(b"Ada\0", "little"))
    block = exif_block(maker, entry(274, 3, 1, 6), bad, after=struct.pack("<ii", -1, 0))
    row = decoded(saved(Image.fromarray(gradient), kind, exif=b"Exif\0\0" + block))
    assert row["pixels"].shape == (36, 24, 3)  # upright
    kept = Image.Exif()
    kept.load(row["exif"])
    assert dict(kept) == {271: "Ada"}
    name = "XResolution" if bad[:2] == entry(282, 0, 0, 0)[:2] else "ExifOffset"
    assert row["note"] == f"EXIF {name} dropped"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("side", "note"),
    [
        (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 2_000_000), "XMP dropped: 2000000"),
        (chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))), "colour profile dropped: "),
        (chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20))), "text 'a' dropped: damaged"),
        (chunk(b"zTXt", b"a\0\0no zlib"), "text 'a' dropped: damaged"),
        (chunk(b"eXIf", b"no exif")[:-1] + b"?", "eXIf dropped: its checksum is wrong"),
        (chunk(b"eXIf", b"no exif"), "EXIF dropped: no TIFF header"),
        (chunk(b"caBX", bytes(99)), "caBX dropped"),
    ],
)
def test_a_png_is_read_whatever_it_says(
    gradient: np.ndarray, saved: Save, side: bytes, note: str
) -> None:
    whole = saved(Image.fromarray(gradient), "PNG")
    data = whole[:33] + side + whole[33:]
    row = decoded(data)
    assert (row["pixels"] == gradient).all() and row["note"].startswith(note)
    assert draw_pairs([("k", data, b"no photo")], "") == draw_pairs([("k", whole, b"")], "")


def test_a_tiff_is_read_whatever_its_tags_say(gradient: np.ndarray, saved: Save) -> None:
    whole = saved(Image.fromarray(gradient), "TIFF", dpi=(300, 300), description="Ada")
    at = whole.index(struct.pack("<HHI", 282, 5, 1))
    for kind, count in ((5, 40_000), (10, 1), (0, 1)):
        damaged = whole[: at + 2] + struct.pack("<HI", kind, count) + whole[at + 8 :]
        row = decoded(damaged)
        assert (row["pixels"] == gradient).all()
        kept = Image.Exif()
        kept.load(row["exif"])
        assert kept[270] == "Ada"


def test_further_pictures_and_what_lies_behind_are_named(gradient: np.ndarray, saved: Save) -> None:
    photo = Image.fromarray(gradient)
    row = decoded(saved(photo, "MPO", save_all=True, append_images=[photo.rotate(90)]))
    assert row["format"] == "JPEG" and row["note"] == "further pictures of the file dropped"
    row = decoded(saved(photo, "JPEG") + b"....ftypmp4 a film")
    assert row["note"] == "data behind the photo dropped: 18 bytes"


def test_metadata_too_long_for_a_jpeg_is_left_out(gradient: np.ndarray, saved: Save) -> None:
    exif = Image.Exif()
    exif[271] = "Ada"
    exif.get_ifd(0x8769)[0x927C] = bytes(50_000)
    exif.get_ifd(0x8769)[0x9286] = bytes(20_000)
    row = decoded(saved(Image.fromarray(gradient), "PNG", exif=exif))
    assert row["note"] == "EXIF UserComment dropped" and 50_000 < len(row["exif"]) < 51_000
    exif.get_ifd(0x8769)[0x927C] = bytes(70_000)
    row = decoded(saved(Image.fromarray(gradient), "PNG", exif=exif))
    assert row["note"] == "EXIF UserComment, EXIF MakerNote dropped" and len(row["exif"]) < 100


def test_a_format_without_its_reader_is_named() -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    expected = "damaged: " if "HEIF" in FORMATS else "no reader: got HEIF; install pillow-heif"
    assert reason(heic).startswith(expected)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_newer_formats_where_they_are_read(kind: str, gradient: np.ndarray, saved: Save) -> None:
    if kind not in FORMATS:
        pytest.skip(f"needs {PLUGINS[kind]}")
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6
    row = decoded(saved(Image.fromarray(gradient), kind, quality=95, exif=exif, xmp=b"<x/>"))
    # By HEIF's standard EXIF turns nothing there; Pillow's AVIF goes by it.
    assert row["format"] == kind
    assert row["pixels"].shape == ((36, 24, 3) if kind == "AVIF" else (24, 36, 3))
    again = decoded(encode(row, {"seed": 1}))
    assert np.abs(again["pixels"].astype(int) - row["pixels"]).mean() < 4
    assert again["side"]["xmp"] == b"<x/>" and again["note"] == ""
    assert read_provenance(encode(row, {"seed": 1})) == {"seed": 1}
