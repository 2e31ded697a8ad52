"""Several edits of a photo, plans of its own, and packed files in and out."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bs_ray.batch.edit import View, batches
from bs_ray.batch.sinks import read_output
from bs_ray.config import EditJob, JobError, job_of
from bs_ray.editing.editor import Edit
from bs_ray.editing.single_photo import OnePhoto
from bs_ray.images.encode import read_provenance
from bs_ray.sliders.mix import Mix
from bs_ray.storage import Store
from bs_ray.tiny.drawn import write_wild
from tests.batch.conftest import MakeJob, files, run


def manifest(job: EditJob) -> list[dict]:
    return pq.read_table(io.BytesIO(Store(job.output).read("manifest.parquet"))).to_pylist()


def quarantine(job: EditJob) -> list[dict]:
    return [json.loads(line) for line in Store(job.output).read("quarantine.jsonl").splitlines()]


def test_a_grid_is_several_edits_of_each_photo(
    editing_here: None, make_job: MakeJob, saved: Callable[..., bytes], tmp_path: Path
) -> None:
    source = Store(tmp_path / "in")
    for n, size in enumerate([(90, 70), (64, 64), (70, 100)]):
        photo = Image.effect_noise(size, 40 + 20 * n).convert("RGB")
        source.write(f"{n}.png", saved(photo, "PNG"))  # what is written is what was computed
    source.write("3.png", b"")
    job = make_job(sliders={"smile": [-1, 0, 1]})
    summary, printed = run(job)
    assert (summary.inputs, summary.edited, summary.quarantined, summary.outputs) == (4, 3, 1, 9)
    assert "4 photos = 3 edited (9 edits) + 1 quarantined" in printed
    rows = manifest(job)
    assert [row["edit"] for row in rows] == ["smile-1", "smile+0", "smile+1"] * 3
    for row in rows:
        before, output = source.read(row["key"]), Store(job.output).read(row["output"])
        assert row["output"] == f"images/{row['edit']}/{row['key']}"
        assert (before == output) == (row["edit"] == "smile+0")
    # An edit is the same alone: the grid shares the encoding, not the noise of others.
    for row in rows[2::3]:
        photo = Path(job.input) / row["key"]
        places = {"base": job.base, "registry": job.registry}
        alone, _ = OnePhoto(photo, {"smile": 1.0}, job.editor, **places, seed=job.seed).edit()
        one = np.asarray(Image.open(io.BytesIO(alone)), int)
        other = np.asarray(Image.open(f"{job.output}/{row['output']}"), int)
        assert np.abs(one - other).max() <= 1  # changes travel as float16


def test_photos_that_say_what_to_do_with_them(
    without_ray: None, make_job: MakeJob, tmp_path: Path
) -> None:
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(
        image, "PNG"
    )
    plans = [
        '{"up": {"smile": 1}, "down": {"smile@1": -1}}',
        None,
        '{"up": {"frown": 1}}',
        "{}",
        "not json",
        '{"../up": {"smile": 1}}',
        '{"up": {"smile": 1e999}}',
        '{"same": {"smile": 0}}',
    ]
    table = pa.table({"bytes": [image.getvalue()] * len(plans), "todo": plans})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "photos.parquet")
    job = make_job(plan="todo", sliders={"smile@1": 1.0}, max_quarantined_share=1)
    summary, _ = run(job)
    assert (summary.inputs, summary.edited, summary.outputs) == (8, 3, 4)
    assert [(row["key"][-1], row["edit"]) for row in manifest(job)] == [
        ("0", "up"),
        ("0", "down"),
        ("1", ""),
        ("7", "same"),
    ]
    made = [read_provenance(read_output(Store(job.output), r["output"])) for r in manifest(job)]
    assert [m and m["sliders"] for m in made] == [
        {"smile@1": 1.0},
        {"smile@1": -1.0},
        {"smile@1": 1.0},
        None,
    ]
    assert manifest(job)[0]["output"] == "images/up/photos/00000000.png"
    assert {row["stage"] for row in quarantine(job)} == {"plan"}
    reasons = [row["reason"] for row in quarantine(job)]
    assert "got 'frown'; expected one of smile@1" in reasons[0]
    assert "got 0 edits" in reasons[1] and "got 'not json'" in reasons[2]
    assert "got edit '../up'" in reasons[3] and "expected a number" in reasons[4]


@pytest.mark.parametrize("sink", ["webdataset", "parquet"])
def test_packed_outputs_are_inputs_of_the_next_job(
    sink: str,
    ray_cluster: None,
    make_job: MakeJob,
    brighter: None,
    bucket: Store,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    write_wild(bucket.join("in"), photos=6, broken=1, seed=1)
    first = make_job(input=bucket.join("in").uri, output=bucket.join("out").uri, sink=sink)
    assert run(first)[0].outputs == 5
    request.getfixturevalue("without_ray")  # the same bytes come out
    keys = {e.key for e in bucket.join("out").list()}
    assert {k for k in keys if k.startswith("shards/")} == {
        f"shards/{n:05d}.{'tar' if sink == 'webdataset' else 'parquet'}" for n in range(2)
    }
    plain = make_job(input=first.input, output=str(tmp_path / "plain"))
    run(plain)
    same = [Store(plain.output).read(row["output"]) for row in manifest(plain)]
    assert [read_output(bucket.join("out"), row["output"]) for row in manifest(first)] == same
    second = make_job(
        input=bucket.join("out/shards").uri, output=str(tmp_path / "again"), sliders={"smile": 0.0}
    )
    summary, _ = run(second)
    assert (summary.inputs, summary.outputs, summary.ignored) == (5, 5, 0)
    copies = [Store(second.output).read(row["output"]) for row in manifest(second)]
    assert copies == same


def test_a_tar_that_others_wrote(ray_cluster: None, make_job: MakeJob, tmp_path: Path) -> None:
    photos = Store(tmp_path / "photos")
    write_wild(photos, photos=3, broken=0, seed=0)
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "0.tar", "w") as archive:
        archive.add(tmp_path / "photos", arcname=".")
    summary, _ = run(make_job(sliders={"smile": 0.0}, limit=2))
    assert (summary.inputs, summary.outputs) == (2, 2)
    copied = files(Store(tmp_path / "out").join("images/0"))
    assert copied.items() <= files(photos).items()


def view(photo: int, width: int, edits: int) -> View:
    pixels = np.zeros((64, width, 3), np.uint8)
    return View(photo, 0, Edit(str(photo), pixels, [Mix({}, {})] * edits, cut=True))


def numbers(batches: Iterable[list[View]]) -> list[list[int]]:
    return [[view.photo for view in batch] for batch in batches]


def test_batches_are_of_one_size_where_they_can_be() -> None:
    views = [view(0, 64, 1), view(1, 128, 1), view(2, 64, 1), view(3, 128, 1)]
    assert numbers(batches(views, 2)) == [[0, 2], [1, 3]]


def test_a_batch_counts_edits() -> None:
    views = [view(0, 64, 2), view(1, 64, 2), view(2, 64, 9), view(3, 64, 1)]
    assert numbers(batches(views, 4)) == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sliders": {"smile": []}}, "got no strength for smile"),
        ({"limit": 3, "sample": 3}, "got limit and sample"),
        ({"edits_column": "p", "input_format": "images"}, "got edits_column with images"),
        ({"sliders": {"smile": [1, float("nan")]}}, "finite number"),
    ],
)
def test_jobs_that_contradict_themselves(settings: dict, message: str) -> None:
    job = {"kind": "edit", "name": "t", "input": "in", "output": "out", "sliders": {"smile": 1.0}}
    with pytest.raises(JobError, match=message):
        job_of(job | settings, "job.yaml")
