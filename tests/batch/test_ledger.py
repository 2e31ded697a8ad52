"""What went in is written or named, whatever the sink; the lines add up to the reports."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bs_ray.batch.accounts import write_reports
from bs_ray.batch.generations import last_whole, publish
from bs_ray.batch.input_list import InputList, open_input_list
from bs_ray.batch.ledger import commit_shard, done_shards, read_lines, reopen
from bs_ray.batch.listing import list_photos
from bs_ray.batch.rows import EditedRow, OutputRow
from bs_ray.batch.sinks import read_output
from bs_ray.batch.verify import lost_shards
from bs_ray.config import EditJob
from bs_ray.images.decode import decode
from bs_ray.images.rows import is_quarantined, quarantined
from bs_ray.storage import Store

Save = Callable[..., bytes]
SINKS = ["images", "webdataset", "parquet"]


@pytest.fixture
def photo(gradient: np.ndarray, saved: Save) -> bytes:
    return saved(Image.fromarray(gradient), "PNG")


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def edited(key: str, data: bytes, edit: str = "", lighter: int = 3) -> EditedRow:
    """A photo as the editor would hand it on, a little lighter."""
    row = decode(key, data, max_pixels=10_000)
    assert not is_quarantined(row), row
    changes = {"pixels": row["pixels"] + lighter, "edit": edit, "mix": {"smile": 1.0}}
    return EditedRow(**{**row, **changes})  # type: ignore[typeddict-item]


def made(row: EditedRow) -> dict[str, object]:
    return {"source_sha256": row["sha256"], "sliders": row["mix"]}


def manifest_of(output: Store, keys: list[str], data: bytes) -> InputList:
    source = Store(f"{output.uri}-in")
    for key in keys:
        source.write(key, data)
    job = EditJob(name="t", input=source.uri, output=output.uri, sliders={"smile": 1.0})
    return open_input_list(
        output, {"seed": 0}, 2, lambda folder: list_photos(source, job, folder, lambda n: None)
    )


def test_the_ledger_reconciles(photo: bytes, output: Store, tmp_path: Path) -> None:
    input_list = manifest_of(output, ["a.png", "b.png", "c.png"], photo)
    first = [edited("a.png", photo), quarantined("b.png", "edit", "failed: odd")]
    commit_shard(output, "images", 0, first, made)
    assert done_shards(output) == {0}
    with pytest.raises(Exception, match=r"00001\.json"):
        write_reports(input_list)  # not done
    commit_shard(output, "images", 1, [edited("c.png", photo)], made)
    assert last_whole(output) == 0
    write_reports(input_list)
    publish(output)
    summary = json.loads(output.read("summary.json"))
    counts = [summary[name] for name in ("inputs", "edited", "quarantined", "outputs")]
    assert counts == [3, 2, 1, 2]
    assert summary["quarantined_by_reason"] == {"edit: failed": 1}
    table = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [r["output"] for r in table] == ["images/a.png", "images/c.png"]
    (line,) = output.read("quarantine.jsonl").decode().splitlines()
    refused = {"key": "b.png", "stage": "edit", "reason": "failed: odd", "generation": 1}
    assert json.loads(line) == refused


@pytest.mark.parametrize("sink", SINKS)
def test_every_output_is_found_where_the_manifest_says(
    sink: str, photo: bytes, output: Store
) -> None:
    rows = [
        edited(key, photo, edit, 3 + i)
        for key in ("x/a.b.png", "numbered/00000001")
        for i, edit in enumerate(("smile-1", "smile+1"))
    ]
    done = commit_shard(output, sink, 0, rows, made)
    assert done == list(read_lines(output, [0]))
    assert len({row["output"] for row in done if not is_quarantined(row)}) == 4
    for before, row in zip(rows, done, strict=True):
        assert not is_quarantined(row)
        data = read_output(output, row["output"])
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["output_sha256"], row["bytes"])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), before["pixels"])
    again = Store(f"{output.uri}-again")
    commit_shard(again, sink, 0, rows, made)
    assert {e.key: output.read(e.key) for e in output.list()} == {
        e.key: again.read(e.key) for e in again.list()
    }


def test_a_tar_is_webdataset_samples(photo: bytes, output: Store) -> None:
    commit_shard(output, "webdataset", 0, [edited("x/a.b.png", photo, "smile+1.5")], made)
    with tarfile.open(fileobj=io.BytesIO(output.read("shards/00000.tar"))) as archive:
        names = archive.getnames()
        assert names == ["smile+1%2E5/x/a%2Eb.png", "smile+1%2E5/x/a%2Eb.json"]
        printed = json.loads(archive.extractfile(names[1]).read())  # type: ignore[union-attr]
    assert printed["sliders"] == {"smile": 1.0}


def test_a_photo_whose_edits_cannot_all_be_written_is_given_up_whole(
    photo: bytes, output: Store
) -> None:
    good, bad = edited("a.png", photo, "one"), edited("a.png", photo, "two")
    bad["alpha"] = np.zeros((3, 3), np.uint8)  # of another size
    done = commit_shard(output, "images", 0, [good, bad, edited("b.png", photo, "one")], made)
    assert [row["key"] for row in done] == ["a.png", "b.png"]
    assert is_quarantined(done[0]) and done[0]["stage"] == "encode"
    assert [e.key for e in output.list("images/")] == ["images/one/b.png"]


def test_the_first_line_of_a_shard_stays(photo: bytes, output: Store) -> None:
    first: OutputRow = commit_shard(output, "images", 0, [edited("a.png", photo)], made)[0]  # type: ignore[assignment]
    commit_shard(output, "images", 0, [quarantined("a.png", "edit", "failed: late")], made)
    assert list(read_lines(output, [0])) == [first]


def test_foreign_lines_are_noticed(output: Store) -> None:
    input_list = manifest_of(output, ["a.png"], b"x")
    commit_shard(output, "images", 0, [quarantined("z.png", "decode", "empty: x")], made)
    with pytest.raises(RuntimeError, match=r"do not match the 1 inputs key by key, first at 'z"):
        write_reports(input_list)
    assert last_whole(output) == 0


def two_shards(output: Store, sink: str, photo: bytes) -> list[str]:
    """Shards of two photos, and one; returns the files that hold them, in order."""
    photos = [edited(key, photo) for key in ("a/x.png", "b.png", "c.png")]
    refused = quarantined("d.png", "decode", "empty: no bytes")
    commit_shard(output, sink, 0, [*photos[:2], refused], made)
    commit_shard(output, sink, 1, photos[2:], made)
    return [entry.key for entry in output.list() if not entry.key.startswith("_bs_ray/")]


@pytest.mark.parametrize("sink", SINKS)
def test_what_the_store_has_lost_is_told_by_shard(sink: str, photo: bytes, output: Store) -> None:
    *first, second = two_shards(output, sink, photo)
    kept = output.read(second)
    assert lost_shards(output, 2) == []
    output.delete(second)
    assert lost_shards(output, 2) == [1]
    output.write(second, kept)
    output.delete(first[-1])
    assert lost_shards(output, 2) == [0]
    reopen(output, [0])
    assert done_shards(output) == {1}


def test_a_photo_cut_short_is_lost_too(photo: bytes, output: Store) -> None:
    place = two_shards(output, "images", photo)[-1]
    output.write(place, output.read(place)[:-1])
    assert lost_shards(output, 2) == [1]
