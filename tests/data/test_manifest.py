"""The input is listed once, and stays what it was."""

from pathlib import Path

import pytest

from bs_ray.data import EmptyInputError, is_quarantined
from bs_ray.data.manifest import JobChangedError, fetch, open_manifest, read_shard
from bs_ray.storage import MissingBucketError, Store, UnreachableError


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("bucket") if request.param == "s3" else Store(tmp_path / "root")


def test_listed_once_sorted_and_cut(store: Store) -> None:
    source, output = store.join("in"), store.join("out")
    for key in ("b/2.JPG", "b/1.jpeg", "a.png", "notes.txt", "c.tif", "b/raw.cr2"):
        source.write(key, key.encode())
    first = open_manifest(source, output, {"seed": 1}, shard_images=3)
    assert first.keys == ["a.png", "b/1.jpeg", "b/2.JPG", "c.tif"]
    assert (first.shards, first.ignored) == (2, 2)
    source.write("late.png", b"")  # a rerun's input is what the first run saw
    assert open_manifest(source, output, {"seed": 1}, shard_images=3) == first
    rows = [read_shard(output, shard) for shard in range(2)]
    assert [[r["key"] for r in shard] for shard in rows] == [first.keys[:3], first.keys[3:]]
    assert rows[1][0]["size"] == len("c.tif") and rows[1][0]["shard"] == 1


def test_another_job_is_refused(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("a.png", b"")
    open_manifest(source, output, {"seed": 1, "editor": {"steps": 5}}, 1)
    with pytest.raises(JobChangedError, match=r"\(editor\.steps: got 6, expected 5\)\. Go back"):
        open_manifest(source, output, {"seed": 1, "editor": {"steps": 6}}, 1)


def test_nothing_to_edit(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("readme.md", b"")
    with pytest.raises(EmptyInputError, match=r"got 1 files, none of them a photo; expected .*jpg"):
        open_manifest(source, output, {}, 1)
    assert output.list() == []  # a corrected prefix starts afresh


def test_what_is_wrong_with_one_photo_quarantines_it(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    for key in ("big.png", "gone.png", "grown.png", "ok.png"):
        source.write(key, b"1234" if key == "big.png" else b"1")
    open_manifest(source, output, {}, 4)
    source.delete("gone.png")
    source.write("grown.png", b"12")
    found = [fetch(source, row, max_bytes=3) for row in read_shard(output, 0)]
    reasons = [row["reason"].partition(":")[0] for row in found if is_quarantined(row)]
    assert reasons == ["too large", "missing", "changed"] and found[3] == b"1"


def test_what_is_wrong_with_the_store_stops_the_job(
    object_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"key": "a.png", "size": 1, "etag": "", "shard": 0}
    with pytest.raises(MissingBucketError):
        fetch(Store("s3://no-such-bucket/x"), row, max_bytes=9)  # type: ignore[arg-type]
    monkeypatch.setattr("bs_ray.data.manifest.Store.read", _unreachable)
    with pytest.raises(UnreachableError):
        fetch(Store("s3://bs-ray-tests/x"), row, max_bytes=9)  # type: ignore[arg-type]


def _unreachable(store: Store, key: str) -> bytes:
    raise UnreachableError("down")
