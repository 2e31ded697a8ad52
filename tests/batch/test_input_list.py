"""The input is listed once, and stays what it was."""

from pathlib import Path
from typing import Any

import pytest

from bs_ray.batch.input_list import InputList, JobChangedError, open_input_list
from bs_ray.batch.listing import list_photos
from bs_ray.config import EditJob, EditorSettings
from bs_ray.images.formats import EmptyInputError
from bs_ray.storage import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("bucket") if request.param == "s3" else Store(tmp_path / "root")


def opened(source: Store, output: Store, settings: dict[str, Any], shard_images: int) -> InputList:
    job = EditJob(name="t", input=source.uri, output=output.uri, sliders={"smile": 1.0})
    listed = lambda folder: list_photos(source, job, folder, lambda count: None)  # noqa: E731
    return open_input_list(output, settings, shard_images, listed)


def test_listed_once_sorted_and_cut(store: Store) -> None:
    source, output = store.join("in"), store.join("out")
    for key in ("b/2.JPG", "b/1.jpeg", "a.png", "notes.txt", "c.tif", "b/raw.cr2"):
        source.write(key, key.encode())
    first = opened(source, output, {"seed": 1}, shard_images=3)
    keys = [row["key"] for row in first.rows()]
    assert keys == ["a.png", "b/1.jpeg", "b/2.JPG", "c.tif"]
    assert (first.photos, first.shards, first.ignored) == (4, 2, 2)
    assert first.bytes == sum(map(len, keys))
    source.write("late.png", b"")  # a rerun's input is what the first run saw
    assert opened(source, output, {"seed": 1}, shard_images=3) == first
    rows = [first.shard(number) for number in range(2)]
    assert [[r["key"] for r in shard] for shard in rows] == [keys[:3], keys[3:]]
    assert rows[1][0]["size"] == len("c.tif") and rows[1][0]["shard"] == 1


def test_shards_of_many_photos_are_found_across_row_groups(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    (tmp_path / "in").mkdir()
    for index in range(5000):
        (tmp_path / "in" / f"{index:05d}.png").touch()
    input_list = opened(source, output, {}, shard_images=7)
    assert input_list.shards == 715
    shards = [input_list.shard(number) for number in range(715)]
    assert [row["key"] for rows in shards for row in rows] == [
        row["key"] for row in input_list.rows()
    ]
    assert all(row["shard"] == number for number, rows in enumerate(shards) for row in rows)
    assert [len(rows) for rows in shards[-2:]] == [7, 2]


def test_another_job_is_refused(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("a.png", b"")
    opened(source, output, {"seed": 1, "editor": {"steps": 5}}, 1)
    with pytest.raises(JobChangedError, match=r"\(editor\.steps: got 6, expected 5\)\. Go back"):
        opened(source, output, {"seed": 1, "editor": {"steps": 6}}, 1)


def test_a_job_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("a.png", b"")
    stored = {"preset": "balanced", "steps": 16, "strength": 0.7, "weights": "flowedit", "steer": 1}
    begun = opened(source, output, {"editor": stored}, 1)
    today = EditorSettings(steps=16, start=0.7).model_dump(mode="json", by_alias=True)
    assert opened(source, output, {"editor": today}, 1) == begun
    with pytest.raises(JobChangedError, match=r"editor\.strength: got 0\.6, expected 0\.7"):
        opened(source, output, {"editor": today | {"strength": 0.6}}, 1)


def test_nothing_to_edit(tmp_path: Path) -> None:
    source, output = Store(tmp_path / "in"), Store(tmp_path / "out")
    source.write("readme.md", b"")
    with pytest.raises(EmptyInputError, match=r"got 1 files, none of them a photo; expected .*jpg"):
        opened(source, output, {}, 1)
    assert output.list() == []  # a corrected prefix starts afresh
