"""LFW in, shards out; broken files are listed, and a second try goes on."""

import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.datasets.ingest import DamagedArchiveError, ShardsChangedError, ingest_photos
from bs_ray.datasets.sources import iter_photos, read_photos
from bs_ray.images.formats import EmptyInputError
from bs_ray.storage import MissingKeyError, Store

Save = Callable[..., bytes]


@pytest.fixture
def tree(tmp_path: Path, gradient: np.ndarray, saved: Save) -> Path:
    photo = saved(Image.fromarray(gradient), "JPEG")
    store = Store(tmp_path / "lfw")
    for person, count in (("Ada_Lovelace", 3), ("Ben", 1), ("Cleo_de_M", 2)):
        for i in range(1, count + 1):
            store.write(f"deep/{person}/{person}_{i:04d}.jpg", photo + bytes(i))
    store.write("deep/Ada_Lovelace/Ada_Lovelace_0002.jpg", photo[:300])
    store.write("deep/names.txt", b"")
    return tmp_path / "lfw"


def archive(tree: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as file:
        file.add(tree / "deep", "lfw", filter=lambda m: m)
    return path


def test_folder_and_archive_give_the_same_photos(tree: Path, tmp_path: Path) -> None:
    folder = ingest_photos(str(tree), str(tmp_path / "a"), shard_images=4)
    assert (folder.photos, folder.identities, folder.shards) == (5, 3, 2)
    (skipped,) = folder.skipped
    assert skipped["key"] == "Ada_Lovelace/Ada_Lovelace_0002.jpg"
    assert skipped["reason"].startswith("truncated")
    assert "5 photos of 3 people in 2 shards; 1 broken file skipped" in str(folder)
    packed = archive(tree, tmp_path / "lfw.tgz")
    again = ingest_photos(str(packed), str(tmp_path / "b"), shard_images=4)
    assert (again.photos, again.identities, again.skipped) == (5, 3, folder.skipped)


each_format = pytest.mark.parametrize(
    "format, suffix", [("parquet", ".parquet"), ("webdataset", ".tar")]
)


@each_format
def test_a_second_try_keeps_what_is_there(
    tree: Path, tmp_path: Path, format: str, suffix: str
) -> None:
    store = Store(tmp_path / "a")
    whole = ingest_photos(str(tree), store.uri, 2, format)
    assert (whole.photos, whole.identities, len(whole.skipped)) == (5, 3, 1)
    before = {e.key: (e.etag, store.read(e.key)) for e in store.list()}
    assert list(before) == [f"shard-{i:05d}{suffix}" for i in range(3)]
    store.delete(f"shard-00001{suffix}")
    assert ingest_photos(str(tree), store.uri, 2, format) == whole
    after = {e.key: (e.etag, store.read(e.key)) for e in store.list()}
    changed = {key for key in before if before[key][0] != after[key][0]}
    assert changed == {f"shard-00001{suffix}"}
    assert {key: data for key, (_, data) in before.items()} == {
        key: data for key, (_, data) in after.items()
    }
    with pytest.raises(ShardsChangedError, match=rf"got shard_images 3 .*; expected 2 as {suffix}"):
        ingest_photos(str(tree), store.uri, 3, format)


def test_a_destination_has_one_format(tree: Path, tmp_path: Path) -> None:
    ingest_photos(str(tree), str(tmp_path / "a"))
    with pytest.raises(ShardsChangedError, match=r"1000 as \.tar; expected 1000 as \.parquet"):
        ingest_photos(str(tree), str(tmp_path / "a"), format="webdataset")
    with pytest.raises(ValueError, match="got 'zip'; expected one of parquet, webdataset"):
        ingest_photos(str(tree), str(tmp_path / "b"), format="zip")


def samples(shard: bytes) -> dict[str, dict[str, bytes]]:
    """A tar as WebDataset's readers see it: name up to the first dot of the file -> its members."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(shard), mode="r|") as stream:
        for member in stream:
            assert member.isreg() and (member.mtime, member.uid, member.gid) == (0, 0, 0)
            if not re.fullmatch(r"__[^/]*__", member.name):
                key, suffix = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()  # type: ignore[union-attr]
                found.setdefault(key, {})[suffix] = stream.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_webdataset_shards_hold_samples(tree: Path, tmp_path: Path) -> None:
    photo = Store(tree).read("deep/Ben/Ben_0001.jpg")
    Store(tree).write("deep/Jo_B._King/Jo_B._King_0001.jpg", photo)
    store = Store(tmp_path / "a")
    ingest_photos(str(tree), store.uri, format="webdataset")
    found = samples(store.read("shard-00000.tar"))
    assert list(found) == [
        *[f"Ada_Lovelace/Ada_Lovelace_000{i}" for i in (1, 3)],
        "Ben/Ben_0001",
        *[f"Cleo_de_M/Cleo_de_M_000{i}" for i in (1, 2)],
        "Jo_B%2E_King/Jo_B%2E_King_0001",
    ]
    dotted = found["Jo_B%2E_King/Jo_B%2E_King_0001"]
    assert dotted["jpg"] == photo
    key = "Jo_B._King/Jo_B._King_0001.jpg"
    assert json.loads(dotted["json"]) == {"key": key, "identity": "Jo_B._King"}


@each_format
def test_a_shard_of_broken_files_is_kept_empty(tmp_path: Path, format: str, suffix: str) -> None:
    Store(tmp_path / "lfw").write("Ada/Ada_0001.jpg", b"no photo")
    for _ in range(2):
        summary = ingest_photos(str(tmp_path / "lfw"), str(tmp_path / "a"), format=format)
        assert (summary.photos, summary.shards, len(summary.skipped)) == (0, 1, 1)


def pack_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def test_any_folder_or_archive_of_pictures(
    tmp_path: Path, gradient: np.ndarray, saved: Save
) -> None:
    jpeg, png = (saved(Image.fromarray(gradient), kind) for kind in ("JPEG", "PNG"))
    files = {
        "00000/00001.png": png,  # numbered, as FFHQ is
        "Ben/Ben_0001.JPG": jpeg,  # LFW's layout from a camera
        "Ben/._Ben_0001.JPG": b"a companion",
        "img_align_celeba/000001.jpg": jpeg,
        "notes.txt": b"",
    }
    for name, data in files.items():
        Store(tmp_path / "in").write(name, data)
    (tmp_path / "in/gone.png").symlink_to("/nowhere")
    found = ingest_photos(str(tmp_path / "in"), str(tmp_path / "a"))
    assert (found.photos, found.identities) == (3, 1)
    assert [(row["key"], row["stage"]) for row in found.skipped] == [("gone.png", "fetch")]
    packed = pack_zip(tmp_path / "in.zip", {**files, "../../evil.png": png})
    found = ingest_photos(str(packed), str(tmp_path / "b"), format="webdataset")
    assert (found.photos, found.identities, found.skipped) == (4, 1, [])
    rows = {row["key"]: row["identity"] for row in iter_photos(str(tmp_path / "b"))}
    assert rows == {
        "00000/00001.png": "",
        "Ben/Ben_0001.JPG": "Ben",
        "img_align_celeba/000001.jpg": "",
        "00000005.png": "",  # a name that leads out of its archive
    }
    ingest_photos(str(packed), str(tmp_path / "c"), identities="folder")
    people = {row["identity"] for row in iter_photos(str(tmp_path / "c"))}
    assert people == {"00000", "Ben", "img_align_celeba", ""}
    assert str(ingest_photos(str(packed), str(tmp_path / "d"), identities="none")).startswith(
        "4 photos in 1 shard"
    )


def test_a_damaged_member_costs_itself(tmp_path: Path, gradient: np.ndarray, saved: Save) -> None:
    png = saved(Image.fromarray(gradient), "PNG")
    packed = pack_zip(tmp_path / "in.zip", {"a.png": png, "b.png": png})
    data = bytearray(packed.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    packed.write_bytes(data)
    found = ingest_photos(str(packed), str(tmp_path / "a"))
    assert found.photos == 1 and found.skipped[0]["reason"].startswith("damaged: Bad CRC-32")


SHARED = Path(os.environ.get("BS_RAY_SHARED", Path(__file__).parents[3] / "shared"))


@each_format
def test_real_lfw_photos(tmp_path: Path, format: str, suffix: str) -> None:
    source = SHARED / "data" / "lfw-sample"
    if not source.is_dir():
        pytest.skip(f"needs {source}")
    summary = ingest_photos(str(source), str(tmp_path), format=format)
    assert (summary.photos, summary.identities, summary.skipped) == (2, 1, [])
    for row in iter_photos(str(tmp_path)):
        assert row["identity"] == "Anthony_Hopkins"
        assert row["bytes"] == (source / row["key"]).read_bytes()


def test_bad_sources(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "texts").mkdir()
    with pytest.raises(EmptyInputError, match="got no picture; expected a folder of photos, or"):
        ingest_photos(str(tmp_path / "texts"), out)
    with pytest.raises(MissingKeyError):
        ingest_photos(str(tmp_path / "no.tgz"), out)
    whole = archive(tree, tmp_path / "lfw.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedArchiveError, match="Fetch it again"):
        ingest_photos(str(tmp_path / "cut.tgz"), out)
    (tmp_path / "no-archive.tgz").write_bytes(b"<html>")
    with pytest.raises(DamagedArchiveError):
        ingest_photos(str(tmp_path / "no-archive.tgz"), out)


@each_format
def test_read_photos_streams_the_shards(
    ray_cluster: None, bucket: Store, tree: Path, format: str, suffix: str
) -> None:
    with pytest.raises(EmptyInputError, match="holds no shard-"):
        read_photos(bucket.uri)
    ingest_photos(str(tree), bucket.uri, 2, format)
    rows = sorted(read_photos(bucket.uri).take_all(), key=lambda row: row["key"])
    assert [r["identity"] for r in rows] == ["Ada_Lovelace"] * 2 + ["Ben"] + ["Cleo_de_M"] * 2
    assert Image.open(io.BytesIO(rows[0]["bytes"])).size == (36, 24)
    assert rows == sorted(iter_photos(bucket.uri), key=lambda row: row["key"])
