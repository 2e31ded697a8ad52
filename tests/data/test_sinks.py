"""Files come out like they went in, and the ledger adds up."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from bs_ray.data import EditedRow, is_quarantined, quarantined
from bs_ray.data.decode import decode
from bs_ray.data.manifest import open_manifest
from bs_ray.data.sinks import commit_shard, done_shards, encode, read_provenance, write_reports
from bs_ray.storage import Store

Save = Callable[..., bytes]
MADE = {"source_sha256": "ab", "sliders": {"smile@1": 1.0}, "seed": 0}
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]


def edited(data: bytes) -> EditedRow:
    """A photo as the editor would hand it on, a little lighter."""
    row = decode("k", data, max_pixels=10_000)
    assert not is_quarantined(row), row
    return EditedRow(**{**row, "pixels": row["pixels"] + 3})


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


def test_the_ledger_reconciles(gradient: np.ndarray, saved: Save, tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    photo = saved(Image.fromarray(gradient), "PNG")
    for key in ("a.png", "b.png", "c.png"):
        source.write(key, photo)
    manifest = open_manifest(source, output, {"seed": 0}, shard_images=2)
    row = edited(photo)
    first = [EditedRow(**{**row, "key": "a.png"}), quarantined("b.png", "edit", "failed: odd")]
    commit_shard(output, 0, first, lambda r: MADE)
    assert done_shards(output) == {0}
    commit_shard(output, 1, [EditedRow(**{**row, "key": "c.png"})], lambda r: MADE)
    summary = write_reports(output, manifest)
    assert (summary["inputs"], summary["outputs"], summary["quarantined"]) == (3, 2, 1)
    assert summary["quarantined_by_reason"] == {"edit: failed": 1}
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [r["output"] for r in table] == ["images/a.png", "images/c.png"]
    (line,) = output.read("quarantine.jsonl").decode().splitlines()
    assert json.loads(line) == {"key": "b.png", "stage": "edit", "reason": "failed: odd"}


def test_foreign_lines_are_noticed(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("a.png", b"x")
    manifest = open_manifest(source, output, {}, shard_images=2)
    commit_shard(output, 0, [quarantined("z.png", "decode", "empty: x")], lambda r: MADE)
    with pytest.raises(RuntimeError, match="do not match the 1 inputs key by key"):
        write_reports(output, manifest)
    assert not output.exists("summary.json")
