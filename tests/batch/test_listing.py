"""Photos one by one, in Parquet files and in tars; what is wrong with one stays its own."""

import base64
import json
import os
import re
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bs_ray.batch.listing import Listing, list_photos
from bs_ray.batch.packed import PackedFileError
from bs_ray.batch.readers import fetch_all
from bs_ray.batch.rows import ImageRow
from bs_ray.batch.survey import place_of_input
from bs_ray.config import EditJob
from bs_ray.images.formats import EmptyInputError
from bs_ray.images.rows import is_quarantined
from bs_ray.storage import MissingBucketError, Store, UnreachableError

MAX_BYTES = 1000

Listed = Callable[..., Listing]


@pytest.fixture(params=["folder", "s3"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("bucket") if request.param == "s3" else Store(tmp_path / "in")


def job_for(source: Store, **changes: Any) -> EditJob:
    return EditJob(name="t", input=source.uri, output="out", sliders={"smile": 1.0}, **changes)


@pytest.fixture
def listed(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    def of(source: Store, **changes: Any) -> Listing:
        folder = tmp_path_factory.mktemp("listing")
        return list_photos(source, job_for(source, **changes), folder, lambda count: None)

    return of


def rows_of(listing: Listing) -> list[ImageRow]:
    return [row for batch in listing.batches() for row in batch.to_pylist()]


def write_parquet(source: Store, key: str, columns: dict[str, Any], rows_a_group: int = 2) -> None:
    file = BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=rows_a_group)
    source.write(key, file.getvalue())


def write_tar(source: Store, key: str, members: dict[str, bytes]) -> None:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    source.write(key, file.getvalue())


def test_images_at_any_depth(listed: Listed, source: Store) -> None:
    for key in ("b/2.JPG", "b/1.jpeg", "a.png", "notes.txt"):
        source.write(key, key.encode())
    found = listed(source)
    assert (found.format, found.ignored, found.bytes) == ("images", 1, 20)
    rows = rows_of(found)
    assert [row["key"] for row in rows] == ["a.png", "b/1.jpeg", "b/2.JPG"]
    assert fetch_all(source, rows, "bytes", MAX_BYTES) == [b"a.png", b"b/1.jpeg", b"b/2.JPG"]


def test_parquet_rows_by_name_or_number(listed: Listed, source: Store) -> None:
    data = [b"one", b"two", b"three", b"four", b"five"]
    write_parquet(source, "a/x.parquet", {"key": [f"p{i}.png" for i in range(5)], "bytes": data})
    hf = [{"bytes": d, "path": None} for d in data]
    write_parquet(source, "b.parquet", {"image": hf})
    source.write("readme.md", b"")
    reasons = reasons_of(source, listed(source))
    assert reasons["b.parquet"].startswith("no photos: b.parquet: got no column 'bytes'; expected")
    found = listed(source.join("a"))
    assert [r["key"] for r in rows_of(found)] == [f"x/p{i}.png" for i in range(5)]
    some = [rows_of(found)[i] for i in (4, 0, 3)]
    assert fetch_all(source.join("a"), some, "bytes", MAX_BYTES) == [b"five", b"one", b"four"]
    source.delete("a/x.parquet")
    found = listed(source, image_column="image", key_column="name")
    assert found.format == "parquet" and found.ignored == 1
    assert [r["key"] for r in rows_of(found)] == [f"b/{i:08d}" for i in range(5)]
    assert fetch_all(source, rows_of(found), "image", MAX_BYTES) == data


def test_tar_members_and_their_plans(listed: Listed, source: Store) -> None:
    plan = {"young": {"age": -1}}
    members = {
        "./s/1.jpg": b"one",
        "./s/1.json": json.dumps({"plan": plan}).encode(),
        "s/2.png": b"two!",
        "s/2.txt": b"",
        "../evil.png": b"three",
        "s/4.jpg": b"4",
        "s/4.json": b"not json",
    }
    write_tar(source, "x.tar", members)
    found = listed(source, plan="plan", input_format="webdataset")
    rows = rows_of(found)
    assert [r["key"] for r in rows] == ["x/s/1.jpg", "x/s/2.png", "x/00000002", "x/s/4.jpg"]
    assert [r["plan"] for r in rows] == [json.dumps(plan), "", "", "not JSON"]
    assert fetch_all(source, rows, "bytes", MAX_BYTES) == [b"one", b"two!", b"three", b"4"]


def test_the_public_writers_files_are_read(listed: Listed, source: Store, tmp_path: Path) -> None:
    """A file as Hugging Face datasets writes it: image column as struct, paths as names."""
    image = BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image, "PNG")
    struct = pa.array([{"bytes": image.getvalue(), "path": "a.png"}] * 3)
    write_parquet(source, "train.parquet", {"image": struct, "id": [7, 8, 9]})
    found = listed(source, image_column="image", key_column="id")
    assert [r["key"] for r in rows_of(found)] == ["train/7", "train/8", "train/9"]
    data = fetch_all(source, rows_of(found), "image", MAX_BYTES)
    assert data == [image.getvalue()] * 3


def test_runs_on_disk_are_merged_into_one_order(
    listed: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Store(tmp_path / "in")
    keys = [f"{n * 7919 % 1000:03d}/\u00e9{n}.png" for n in range(50)]
    for key in keys:
        source.write(key, b"x")
    whole = rows_of(listed(source))
    monkeypatch.setattr("bs_ray.batch.external_sort._RUN", 7)
    assert rows_of(listed(source)) == whole
    assert [row["key"] for row in whole] == sorted(keys, key=str.encode)
    assert len(rows_of(listed(source, limit=9))) == 9


def test_limit_and_sample(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    for index in range(20):
        source.write(f"{index:02d}.png", b"x")
    first = [row["key"] for row in rows_of(listed(source, limit=3))]
    assert first == ["00.png", "01.png", "02.png"]
    drawn = [row["key"] for row in rows_of(listed(source, sample=5))]
    assert len(drawn) == 5 and drawn == sorted(drawn) and drawn != first
    assert drawn == [row["key"] for row in rows_of(listed(source, sample=5))]
    assert drawn != [row["key"] for row in rows_of(listed(source, sample=5, seed=1))]


def test_names_that_would_meet_are_refused(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    write_parquet(source, "x.parquet", {"key": ["a", "b", "a"], "bytes": [b"", b"", b""]})
    with pytest.raises(PackedFileError, match="got two photos named 'x/a'; expected each name"):
        listed(source)
    write_parquet(source, "x.parquet", {"key": ["a", "a.png"], "bytes": [b"", b""]})
    with pytest.raises(PackedFileError, match="got two photos named 'x/a'"):
        listed(source)


def test_nothing_but_broken_packed_files_stops_the_job_before_work(
    listed: Listed, tmp_path: Path
) -> None:
    source = Store(tmp_path / "in")
    source.write("x.parquet", b"PAR1 but no more")
    with pytest.raises(PackedFileError, match=r"x\.parquet: damaged: got a file that cannot be"):
        listed(source)
    source.delete("x.parquet")
    source.write("x.tar", b"x" * 700)
    with pytest.raises(PackedFileError, match=r"x\.tar: damaged: got a file that cannot be"):
        listed(source)
    with pytest.raises(EmptyInputError, match=r"none of them a photo; expected .*\.parquet"):
        listed(source, input_format="parquet")


def test_what_is_wrong_with_one_photo_quarantines_it(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    for key in ("big.png", "gone.png", "grown.png", "ok.png"):
        source.write(key, b"1234" if key == "big.png" else b"1")
    rows = rows_of(listed(source))
    source.delete("gone.png")
    source.write("grown.png", b"12")
    found = fetch_all(source, rows, "bytes", 3)
    reasons = [row["reason"].partition(":")[0] for row in found if is_quarantined(row)]
    assert reasons == ["too large", "missing", "changed"] and found[3] == b"1"


def test_nulls_and_large_images_in_parquet(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    write_parquet(source, "x.parquet", {"bytes": pa.array([b"123456", None, b"1"], pa.binary())})
    rows = rows_of(listed(source))
    found = fetch_all(source, rows, "bytes", 3)
    reasons = [row["reason"].partition(":")[0] for row in found if is_quarantined(row)]
    assert reasons == ["too large", "missing"] and found[2] == b"1"


def test_what_is_wrong_with_the_store_stops_the_job(
    object_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: ImageRow = {
        "key": "a.png",
        "size": 1,
        "etag": "",
        "file": "",
        "at": 0,
        "plan": "",
        "shard": 0,
    }
    missing = Store("s3://no-such-bucket/x")
    with pytest.raises(MissingBucketError):
        fetch_all(missing, [row], "bytes", MAX_BYTES)
    monkeypatch.setattr("bs_ray.batch.readers.Store.read", _unreachable)
    there = Store("s3://bs-ray-tests/x")
    with pytest.raises(UnreachableError):
        fetch_all(there, [row], "bytes", MAX_BYTES)


def reasons_of(source: Store, listing: Listing, column: str = "bytes") -> dict[str, str]:
    """Key -> reason of what is quarantined."""
    found = fetch_all(source, rows_of(listing), column, MAX_BYTES)
    return {row["key"]: row["reason"] for row in found if is_quarantined(row)}


def test_names_and_links_that_lead_nowhere_are_quarantined(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    for key in ("a.jpg", "sub/b.jpg"):
        source.write(key, b"x")
    folder = os.fsencode(tmp_path / "in")
    Path(os.fsdecode(folder + b"/caf\xe9.jpg")).write_bytes(b"x")  # as a Latin-1 system wrote it
    for link, place in {"all": ".", "sub/up": "..", "same": "sub", "gone.jpg": "/nowhere"}.items():
        (tmp_path / "in" / link).symlink_to(place)
    (tmp_path / "in/self.jpg").symlink_to("self.jpg")
    found = listed(source)
    keys = [row["key"] for row in rows_of(found)]
    assert keys == ["a.jpg", r"caf\xe9.jpg", "gone.jpg", "self.jpg", "sub/b.jpg"]
    assert [entry.key for entry in source.list()] == ["a.jpg", "sub/b.jpg"]  # for other readers
    reasons = reasons_of(source, found)
    assert reasons.pop(r"caf\xe9.jpg").startswith("name: got bytes that are not UTF-8")
    assert set(reasons) == {"gone.jpg", "self.jpg"}
    assert reasons["gone.jpg"] == "dead link: it leads to '/nowhere'"


def test_what_systems_and_other_jobs_put_there_is_left_out_and_said(
    listed: Listed, tmp_path: Path
) -> None:
    source = Store(tmp_path / "in")
    ours = ["smile/_bs_ray/input.parquet", "smile/images/a.jpg", "smile/contact-sheet.png"]
    junk = ["._a.jpg", "x/.DS_Store", "__MACOSX/x/._b.jpg", "Thumbs.db"]
    for key in ("a.jpg", "b.jfif", "notes.txt", "bare", *ours, *junk):
        source.write(key, b"x")
    found = listed(source)
    assert [row["key"] for row in rows_of(found)] == ["a.jpg", "b.jfif"]
    assert found.ignored == 9 and found.notes == (
        "left out: 4 files that systems put beside photos (._*, .DS_Store and the like)",
        "left out: 3 files below smile, the output of a job",
        "ignored: 1 without a suffix, 1 .txt",
    )
    # The output of a job may be the input of the next, and a job's own output is no input.
    assert [row["key"] for row in rows_of(listed(source.join("smile")))][1:] == ["images/a.jpg"]
    source.write("age/images/a.jpg", b"x")
    job = job_for(source).model_copy(update={"output": f"{source.uri}/age"})
    inside = list_photos(source, job, tmp_path, lambda count: None)
    assert [row["key"] for row in rows_of(inside)] == ["a.jpg", "b.jfif"]


def test_an_input_may_be_a_file_or_a_glob(tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    for key in ("a.jpg", "b.png", "2024/c.jpg", "2024/x/d.jpg", "2025/e.jpg", "f [1].jpg"):
        source.write(key, b"x")
    write_tar(source, "x.tar", {"g.jpg": b"one"})
    for name, expected in {
        "*.jpg": ["a.jpg", "f [1].jpg"],
        "**/*.jpg": ["2024/c.jpg", "2024/x/d.jpg", "2025/e.jpg", "a.jpg", "f [1].jpg"],
        "202?": ["2024/c.jpg", "2024/x/d.jpg", "2025/e.jpg"],
        "2024": ["c.jpg", "x/d.jpg"],
        "f [1].jpg": ["f [1].jpg"],
        "x.tar": ["x/g.jpg"],
    }.items():
        job = job_for(source).model_copy(update={"input": f"{source.uri}/{name}"})
        store, _ = place_of_input(job.input)
        found = list_photos(store, job, tmp_path, lambda count: None)
        assert [row["key"] for row in rows_of(found)] == expected
    assert place_of_input("s3://faces/lfw/x.tar") == (Store("s3://faces/lfw"), r"x\.tar")
    assert place_of_input("s3://faces/2024-*/a")[0] == Store("s3://faces")


def test_metadata_beside_archives_is_not_taken_for_photos(listed: Listed, tmp_path: Path) -> None:
    """As img2dataset writes it: a tar of photos, a Parquet file about them, a .json of counts."""
    source = Store(tmp_path / "in")
    for name in ("00000", "00001"):
        write_tar(source, f"{name}.tar", {"1.jpg": b"one", "1.txt": b"", "._1.jpg": b""})
        write_parquet(source, f"{name}.parquet", {"url": ["https://x/1.jpg"], "key": ["1"]})
        source.write(f"{name}_stats.json", b"{}")
    found = listed(source)
    assert found.format == "webdataset" and found.photos == 2
    assert found.notes[0] == (
        "input_format: not parquet, since 00000.parquet holds no column 'bytes'"
    )
    with pytest.raises(PackedFileError, match="got no column 'bytes'; expected one of url, key"):
        listed(source, input_format="parquet")
    write_parquet(source, "9.parquet", {"bytes": [b"x"]})
    found = listed(source, input_format="parquet")
    assert [row["key"] for row in rows_of(found)][-1] == "9/00000000"
    assert reasons_of(source, found)["00000.parquet"].startswith("no photos: ")


def test_a_cut_archive_costs_itself(listed: Listed, tmp_path: Path) -> None:
    source = Store(tmp_path / "in")
    for name in ("0.tar", "1.tar", "2.tar"):
        write_tar(source, name, {"a.jpg": b"one", "b.jpg": b"x" * 600})
    source.write("1.tar", b"")
    source.write("2.tar", source.read("2.tar")[:1700])  # within b.jpg
    found = listed(source)
    keys = [row["key"] for row in rows_of(found)]
    assert keys == ["0/a.jpg", "0/b.jpg", "1.tar", "2/a.jpg", "2.tar"]
    reasons = reasons_of(source, found)
    assert set(reasons) == {"1.tar", "2.tar"}
    assert "the 1 photos before that are taken" in reasons["2.tar"]


def test_columns_are_read_where_they_plainly_hold_pictures(listed: Listed, tmp_path: Path) -> None:
    source, data = Store(tmp_path / "in"), [b"one", b"two\xff\xfe"]
    text = [base64.b64encode(some).decode() for some in data]
    for cells in (
        pa.array(data, pa.large_binary()),
        pa.array(text),
        pa.array([f"data:image/png;base64,{some}" for some in text]),
        pa.array([some.rstrip("=").replace("/", "_").replace("+", "-") for some in text]),
        pa.array([[{"bytes": some, "path": None}] for some in data]),
        pa.array(text).dictionary_encode(),
    ):
        write_parquet(source, "x.parquet", {"picture": cells})
        found = listed(source, image_column="picture")
        assert fetch_all(source, rows_of(found), "picture", MAX_BYTES) == data
    several = pa.array([[{"bytes": b"one"}], [{"bytes": b"1"}, {"bytes": b"2"}]])
    write_parquet(source, "x.parquet", {"picture": several})
    reasons = reasons_of(source, listed(source, image_column="picture"), "picture")
    assert reasons == {"x/00000001": "several: its row holds 2 pictures; expected one"}


@pytest.mark.parametrize(
    ("cells", "got"),
    [
        (pa.array([7, 8]), "got int64; expected image files"),
        (pa.array([[1, 2], [3, 4]], pa.large_list(pa.uint8())), "got pixels"),
        (pa.array([{"path": "a.jpg"}]), "got a struct of path"),
        (pa.array([{"path": "a.jpg", "bytes": None}]), "its row holds the path 'a.jpg' instead"),
        (pa.array(["https://x/a.jpg"]), "its row holds the text 'https://x/a.jpg'; expected"),
    ],
)
def test_columns_without_pictures_are_refused_before_work(
    listed: Listed, tmp_path: Path, cells: pa.Array, got: str
) -> None:
    source = Store(tmp_path / "in")
    write_parquet(source, "x.parquet", {"bytes": cells})
    with pytest.raises(PackedFileError, match=re.escape(got)):
        listed(source)


def _unreachable(store: Store, key: str) -> bytes:
    raise UnreachableError("down")
