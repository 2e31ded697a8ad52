"""LFW in, Parquet shards out; broken files are listed, and a second try goes on."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.data import EmptyInputError
from bs_ray.data.lfw import DamagedArchiveError, ShardsChangedError, ingest_lfw
from bs_ray.data.sources import read_photos
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
    folder = ingest_lfw(str(tree), str(tmp_path / "a"), shard_images=4)
    assert (folder.photos, folder.identities, folder.shards) == (5, 3, 2)
    (skipped,) = folder.skipped
    assert skipped["key"] == "Ada_Lovelace/Ada_Lovelace_0002.jpg"
    assert skipped["reason"].startswith("truncated")
    assert "5 photos of 3 people in 2 shards; 1 broken files skipped" in str(folder)
    packed = archive(tree, tmp_path / "lfw.tgz")
    again = ingest_lfw(str(packed), str(tmp_path / "b"), shard_images=4)
    assert (again.photos, again.identities, again.skipped) == (5, 3, folder.skipped)


def test_a_second_try_keeps_what_is_there(tree: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    whole = ingest_lfw(str(tree), store.uri, shard_images=2)
    before = {e.key: e.etag for e in store.list()}
    store.delete("shard-00001.parquet")
    assert ingest_lfw(str(tree), store.uri, shard_images=2) == whole
    after = {e.key: e.etag for e in store.list()}
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"shard-00001.parquet"}
    with pytest.raises(ShardsChangedError, match="got shard_images 3; expected 2"):
        ingest_lfw(str(tree), store.uri, shard_images=3)


def test_bad_sources(tree: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(EmptyInputError, match="no file named like Name_Name/Name_Name_0001"):
        ingest_lfw(str(tree / "deep" / "Ben"), out)
    with pytest.raises(MissingKeyError):
        ingest_lfw(str(tmp_path / "no.tgz"), out)
    whole = archive(tree, tmp_path / "lfw.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedArchiveError, match="Fetch it again"):
        ingest_lfw(str(tmp_path / "cut.tgz"), out)
    (tmp_path / "no-archive.tgz").write_bytes(b"<html>")
    with pytest.raises(DamagedArchiveError):
        ingest_lfw(str(tmp_path / "no-archive.tgz"), out)


def test_read_photos_streams_the_shards(ray_cluster: None, bucket: Store, tree: Path) -> None:
    with pytest.raises(EmptyInputError, match="holds no shard-"):
        read_photos(bucket.uri)
    ingest_lfw(str(tree), bucket.uri, shard_images=2)
    rows = sorted(read_photos(bucket.uri).take_all(), key=lambda row: row["key"])
    assert [r["identity"] for r in rows] == ["Ada_Lovelace"] * 2 + ["Ben"] + ["Cleo_de_M"] * 2
    assert Image.open(io.BytesIO(rows[0]["bytes"])).size == (36, 24)
