"""`bs-ray edit`: everything that goes in comes out, or is named with a reason; after kills too."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bs_ray.batch import run as run_module
from bs_ray.batch.edit import edit_rows
from bs_ray.batch.input_list import JobChangedError
from bs_ray.batch.prepare import EditFailed
from bs_ray.batch.report import contact_sheet
from bs_ray.batch.rows import PlannedRow
from bs_ray.batch.run import edit
from bs_ray.config import EditJob, EditorSettings
from bs_ray.editing.editor import Edit, Edited
from bs_ray.images.decode import decode
from bs_ray.images.encode import read_provenance
from bs_ray.images.formats import EmptyInputError
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import AccessError, MissingBucketError, StorageError, Store, UnreachableError
from bs_ray.testing import random_slider
from bs_ray.tiny.drawn import wild_jpeg, write_wild
from tests.batch.brighter import brighter_pipeline
from tests.batch.conftest import MakeJob, files, run
from tests.promptly import promptly

# ------------------------------------------------------------------ the whole job


@pytest.fixture(scope="module")
def whole(ray_cluster: None, object_store: object, random_base: Path, registry: str) -> EditJob:
    """A finished, undisturbed job in the object store: 24 photos, 5 of them broken, and a text.

    It edited without a model, and so must what is compared with it: `brighter`.
    """
    root = Store("s3://bs-ray-tests/batch")
    source = root.join("in")
    write_wild(source, photos=24, broken=5, seed=3)
    source.write("notes.txt", b"not a photo")
    job = EditJob(
        name="whole",
        base=str(random_base),
        input=source.uri,
        output=root.join("out").uri,
        registry=registry,
        sliders={"smile": 1.0},
        editor=EditorSettings(steps=1),
        shard_images=4,
        batch_size=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "pipeline", brighter_pipeline)
        summary, printed = run(job)
    assert (summary.inputs, summary.edited, summary.quarantined, summary.ignored) == (24, 19, 5, 1)
    assert summary.outputs == 19
    assert "24 photos = 19 edited + 5 quarantined" in printed
    return job


def test_counts_reconcile(whole: EditJob, tmp_path: Path) -> None:
    check_rows(Store(whole.input), Store(whole.output))
    sheet = contact_sheet(whole, tmp_path / "sheet.png", pairs=3)
    assert Image.open(sheet).size[0] > 800


def test_a_second_run_writes_nothing_and_says_so(whole: EditJob, slider: Slider) -> None:
    output = Store(whole.output)
    before = {e.key: e.etag for e in output.list()}
    newer = Slider(slider.card.model_copy(update={"base": "another name"}), slider.factors)
    Registry(whole.registry).publish(newer)
    again, printed = run(whole)
    Store(whole.registry).delete("smile/0002.safetensors")
    assert again.nothing_to_do and again.skipped_shards == 6 and again.outputs == 19
    assert "nothing to do, all 24 photos are done" in printed
    assert "goes on with smile@1, as it began; smile@2 is newer" in printed
    assert {e.key: e.etag for e in output.list()} == before


def check_rows(source: Store, output: Store) -> None:
    """Every input is an output of its size, or in quarantine; every hash is true."""
    inputs = {key: data for key, data in files(source).items() if key.endswith(".jpg")}
    rows = pq.read_table(io.BytesIO(output.read("manifest.parquet"))).to_pylist()
    refused = [json.loads(line) for line in output.read("quarantine.jsonl").splitlines()]
    assert sorted([r["key"] for r in rows] + [r["key"] for r in refused]) == sorted(inputs)
    kinds = sorted(row["reason"].partition(":")[0] for row in refused)
    assert kinds == ["empty", "not an image", "not an image", "too many pixels", "truncated"]
    assert {row["stage"] for row in refused} == {"decode"}
    assert {e.key for e in output.list("images/")} == {row["output"] for row in rows}
    for row in rows:
        before, after = inputs[row["key"]], output.read(row["output"])
        assert row["sha256"] == hashlib.sha256(before).hexdigest()
        assert row["output_sha256"] == hashlib.sha256(after).hexdigest()
        made = read_provenance(after)
        assert made is not None and made["sliders"] == {"smile@1": 1.0}
        assert made["source_sha256"] == row["sha256"]
        one, other = (decode("k", data, max_pixels=10**6) for data in (before, after))
        assert not is_quarantined(one) and not is_quarantined(other)
        assert one["pixels"].shape == other["pixels"].shape
        assert (one["pixels"] != other["pixels"]).any()


KILLED = """
import sys
from bs_ray.batch import run
from bs_ray.config import EditJob
from tests.batch.brighter import brighter_pipeline
run.pipeline = brighter_pipeline
run.edit(EditJob.model_validate_json(sys.argv[1]))
"""


def test_a_killed_run_resumes_to_the_same_bytes(whole: EditJob, brighter: None) -> None:
    import ray

    output = Store("s3://bs-ray-tests/batch/killed")
    job = whole.model_copy(update={"output": output.uri})
    driver = subprocess.Popen(
        [sys.executable, "-c", KILLED, job.model_dump_json()],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not output.list("_bs_ray/shards/"):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    summary, _ = run(job)
    assert 0 < summary.skipped_shards < 6 and not summary.nothing_to_do
    assert (summary.inputs, summary.outputs, summary.quarantined) == (24, 19, 5)
    assert files(output) == files(Store(whole.output))


def test_what_the_store_has_lost_is_made_again(whole: EditJob, without_ray: None) -> None:
    """All shards are done, the reports are not, and a photo that was acknowledged is gone."""
    output, undisturbed = Store("s3://bs-ray-tests/batch/lost"), files(Store(whole.output))
    lost = next(key for key in undisturbed if key.startswith("images/"))
    for key, data in undisturbed.items():
        if key != lost and not key.endswith("summary.json"):
            output.write(key, data)
    job = whole.model_copy(update={"output": output.uri})
    with pytest.raises(EditFailed, match="got 1 shards with outputs that are no longer in"):
        run(job)
    assert not output.exists("summary.json")
    summary, _ = run(job)
    assert (summary.skipped_shards, summary.outputs) == (5, 19)
    assert files(output) == undisturbed


def test_strength_zero_copies_every_file(
    ray_cluster: None, make_job: MakeJob, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for name, mode in (("a.png", "RGBA"), ("b.jpg", "RGB"), ("c.webp", "RGB"), ("d.tif", "CMYK")):
        Image.fromarray(pixels[..., : len(mode)], mode).save(tmp_path / "in" / name)
    job = make_job(sliders={"smile": 0.0})
    assert run(job)[0].outputs == 4
    assert files(Store(job.output).join("images")) == files(Store(job.input))


def test_real_portraits(ray_cluster: None, make_job: MakeJob, brighter: None) -> None:
    shared = Path(os.environ.get("BS_RAY_SHARED", Path(__file__).parents[3] / "shared"))
    photos = shared / "data" / "photos"
    if not photos.is_dir():
        pytest.skip(f"needs real photos in {photos}")
    job = make_job(input=str(photos), shard_images=6)
    summary, _ = run(job)
    count = len(list(photos.glob("*.jpg")))
    assert (summary.inputs, summary.outputs, summary.quarantined) == (count, count, 0)
    for path in photos.glob("*.jpg"):
        with Image.open(path) as before, Image.open(f"{job.output}/images/{path.name}") as after:
            upright = before.getexif().get(274, 1) < 5
            assert after.size == (before.size if upright else before.size[::-1])
            kept, own = after.getexif(), {274, 0x8769, 0x8825}
            assert {t: v for t, v in before.getexif().items() if t not in own} == {
                t: v for t, v in kept.items() if t not in own
            }
            assert after.info.get("icc_profile") == before.info.get("icc_profile")


def test_too_many_bad_photos_fail_the_job_after_committing(
    ray_cluster: None, make_job: MakeJob, tmp_path: Path
) -> None:
    for index in range(6):
        data = wild_jpeg(np.zeros((64, 64, 3), np.uint8), index) if index > 3 else b""
        Store(tmp_path / "in").write(f"{index}.jpg", data)
    job = make_job(sliders={"smile": 0.0})
    with pytest.raises(EditFailed, match=r"got 4 of 6 photos quarantined; expected at most 50%"):
        run(job)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    with pytest.raises(EditFailed, match="max_quarantined_share"):  # finished, but no success
        run(job)
    lenient = make_job(sliders={"smile": 0.0}, max_quarantined_share=0.7)
    assert run(lenient)[0].nothing_to_do


def test_a_store_that_fails_midway_stops_the_job(
    ray_cluster: None, make_job: MakeJob, tmp_path: Path
) -> None:
    write_wild(Store(tmp_path / "in"), photos=2, broken=0, seed=0)
    job = make_job(sliders={"smile": 0.0})
    Store(job.output).write("images", b"a file where a folder should be")
    with pytest.raises(EditFailed, match=r"stopped by .*Cannot write.*run the same command again"):
        run(job)
    Store(job.output).delete("images")
    assert run(job)[0].outputs == 2


# ------------------------------------------------------------------ one shard


class _Editor:
    """Adds 10, but cannot stand pictures that are all black; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def mix(self, strengths: dict[str, float]) -> Mix:
        return Mix(strengths, strengths)

    def edit(self, edits: list[Edit]) -> list[list[Edited]]:
        self.batches.append(len(edits))
        if any(not e.pixels.any() for e in edits):
            raise ValueError("too dark")
        ten = np.full((4, 4, 3), 10, np.float32)
        return [[Edited(e.pixels + ten, ("a note",), change=ten)] for e in edits]


def test_one_bad_photo_costs_one_photo(make_job: MakeJob) -> None:
    rows: list[PlannedRow | QuarantinedRow] = [
        PlannedRow(
            key=f"{index}.png",
            sha256=str(index),
            format="PNG",
            note="",
            regions=None,
            edits={"": {"smile": 1.0}},
            views=[np.full((4, 4, 3), value, np.uint8)],
        )
        for index, value in enumerate((9, 0, 7, 8))
    ]
    rows.insert(1, quarantined("bad.png", "decode", "empty: the file has no bytes"))
    editor = _Editor()
    done = edit_rows(rows, editor, editor.edit, make_job())  # type: ignore[arg-type]
    assert editor.batches == [3, 1, 1, 1, 1]  # a batch, its photos one by one, the next batch
    assert [row["key"] for row in done] == ["0.png", "bad.png", "1.png", "2.png", "3.png"]
    failed = done[2]
    assert is_quarantined(failed)
    assert (failed["stage"], failed["reason"]) == ("edit", "failed: ValueError: too dark")
    assert not is_quarantined(done[0]) and (done[0]["changes"][0] == 10).all()
    assert done[0]["note"] == "a note"


def test_the_other_embedded_base_is_found_by_workers_too(ray_cluster: None, tmp_path: Path) -> None:
    write_wild(Store(tmp_path / "in"), photos=2, broken=0, seed=0)
    Registry(str(tmp_path / "sliders")).publish(random_slider(load_base("tiny-flow"), "smile", 0))
    job = EditJob(
        name="flow",
        base="tiny-flow",
        input=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        registry=str(tmp_path / "sliders"),
        sliders={"smile": 1.0},
        editor=EditorSettings(steps=1),
    )
    summary, _ = run(job)
    assert (summary.inputs, summary.outputs) == (2, 2)


# ------------------------------------------------------------------ bad jobs, before any work


def test_bad_places(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(MissingBucketError):
        edit(make_job())
    (tmp_path / "in").mkdir()
    with pytest.raises(EmptyInputError, match="none of them a photo"):
        edit(make_job())
    with pytest.raises(BaseNotFound, match=r"nowhere, which has no model_index\.json"):
        edit(make_job(base=str(tmp_path / "nowhere")))
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_missing_bucket(object_store: Any, make_job: MakeJob) -> None:
    with pytest.raises(MissingBucketError, match="no-such-bucket"):
        edit(make_job(input="s3://no-such-bucket/photos"))


@pytest.mark.parametrize("place", ["input", "output", "registry"])
def test_bad_credentials(
    make_job: MakeJob, bad_credentials: None, tmp_path: Path, place: str
) -> None:
    write_wild(Store(tmp_path / "in"), photos=1, broken=0, seed=0)
    job = make_job(**{place: "s3://bs-ray-tests/bad"})
    assert "bucket 'bs-ray-tests'" in refused(job)
    assert not (tmp_path / "out").exists() or not Store(tmp_path / "out").list()


def test_read_only_output(
    object_store: Any, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = Store("s3://bs-ray-tests/read-only")
    write_wild(Store(tmp_path / "in"), photos=1, broken=0, seed=0)
    with monkeypatch.context() as patch:
        for name, value in object_store.read_only_env.items():
            patch.setenv(name, value)
        assert "may write in bucket 'bs-ray-tests'" in refused(make_job(output=output.uri))
    assert output.list() == []


def test_an_output_store_that_is_down(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_wild(Store(tmp_path / "in"), photos=1, broken=0, seed=0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens
    job = make_job(output="s3://bs-ray-tests/down")
    assert "127.0.0.1:9" in refused(job, UnreachableError)


def refused(job: EditJob, kind: type[StorageError] = AccessError) -> str:
    """The error of a job that cannot use its store, which comes within seconds."""
    with promptly(), pytest.raises(kind) as caught:
        edit(job)
    return str(caught.value)


def test_bad_sliders(make_job: MakeJob, slider: Slider, tmp_path: Path) -> None:
    write_wild(Store(tmp_path / "in"), photos=1, broken=0, seed=0)
    with pytest.raises(SliderError, match="got 'frown'; expected one of smile"):
        edit(make_job(sliders={"frown": 1.0}))
    with pytest.raises(SliderError, match="got smile more than once"):
        edit(make_job(sliders={"smile": 1.0, "smile@1": 1.0}))
    foreign = Slider(slider.card.model_copy(update={"base_id": "other"}), slider.factors)
    (tmp_path / "foreign.safetensors").write_bytes(foreign.to_bytes())
    used = {str(tmp_path / "foreign.safetensors"): 1.0}
    with pytest.raises(SliderError, match="expected other"):
        edit(make_job(sliders=used, other_bases="refuse"))


def test_a_changed_job_is_refused(ray_cluster: None, make_job: MakeJob, tmp_path: Path) -> None:
    write_wild(Store(tmp_path / "in"), photos=2, broken=0, seed=0)
    run(make_job(sliders={"smile": 0.0}))
    wanted = r"sliders\.smile\.strength: got 1\.0, expected 0\.0.*choose another output"
    with pytest.raises(JobChangedError, match=wanted):
        edit(make_job())
    assert run(make_job(sliders={"smile": 0.0}, workers=3))[0].nothing_to_do
