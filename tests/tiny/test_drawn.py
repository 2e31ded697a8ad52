"""The tiny world's photos: as messy as ordered, and the same each time."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bs_ray.images.decode import decode
from bs_ray.images.rows import is_quarantined
from bs_ray.storage import Store
from bs_ray.tiny.drawn import ingest_tiny_world, person_name


def test_world_is_as_ordered(tmp_path: Path) -> None:
    world = ingest_tiny_world(str(tmp_path / "a"), photos=30, people=6, broken=5, seed=1)
    assert (world.wild, world.broken, world.lfw.photos, world.lfw.identities) == (30, 5, 12, 6)
    store = Store(tmp_path / "a")
    files = {e.key: store.read(e.key) for e in store.list("wild/")}
    rows = [decode(key, data, max_pixels=10**7) for key, data in files.items()]
    kinds = [row["reason"].partition(":")[0] for row in rows if is_quarantined(row)]
    assert sorted(kinds) == [
        "empty",
        "not an image",
        "not an image",
        "too many pixels",
        "truncated",
    ]
    assert {row["pixels"].shape[:2] for row in rows if not is_quarantined(row)} == {
        (64, 64),
        (96, 96),
        (128, 128),
    }
    photos = pq.read_table(tmp_path / "a" / "lfw" / "shard-00000.parquet").to_pylist()
    assert photos[1]["key"] == "Ben_Bababa/Ben_Bababa_0001.jpg"
    ingest_tiny_world(str(tmp_path / "b"), photos=30, people=6, broken=5, seed=1)
    other = Store(tmp_path / "b")
    assert {e.key: other.read(e.key) for e in other.list("wild/")} == files


def test_more_broken_than_photos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 5 of 3 photos; expected at most all of them"):
        ingest_tiny_world(str(tmp_path), photos=3, broken=5)


def test_names_are_unique() -> None:
    assert len({person_name(i) for i in range(5000)}) == 5000
