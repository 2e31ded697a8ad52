"""Edit jobs that were begun before: finished as they would have been, with what was done kept."""

import io
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from bs_ray import __version__
from bs_ray.batch import run as run_module
from bs_ray.batch import write
from bs_ray.batch.fetch import edits_of
from bs_ray.batch.input_list import JobChangedError
from bs_ray.batch.prepare import prepare
from bs_ray.batch.run import edit
from bs_ray.config import load
from bs_ray.images.encode import encode, read_provenance
from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore
from tests.batch.brighter import EditingPipeline, HerePipeline


def upload(folder: Path, store: Store) -> None:
    """Every file to its place in the store; an input list knows its input by that place."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())


SAID = "expected JPEG, PNG, WebP, BMP or TIFF"
SAYS = "expected one of JPEG, PNG, WEBP, BMP, TIFF, HEIF, AVIF"


def test_a_job_half_way_is_finished(
    object_store: LocalObjectStore, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "pipeline", EditingPipeline)
    monkeypatch.setattr(run_module, "ray_session", lambda **_: nullcontext())
    # That version compressed every JPEG at quality 95; this one compresses it as it was.
    monkeypatch.setattr(write, "encode", partial(encode, quality=95))
    job = load("jobs/edit.yaml", ["output=ledger/out"])
    upload(old / "ledger" / "in", Store(job.input))
    output, rest = Store(job.output), old / "ledger" / "rest"
    before = {entry.key: entry.etag for entry in output.list()}
    done = [key for key in before if key.startswith(("images/", "_bs_ray/shards/"))]
    assert len(done) == 8

    summary = edit(job, console=Console(file=io.StringIO()))
    assert (summary.inputs, summary.edited, summary.quarantined) == (6, 4, 2)
    assert (summary.outputs, summary.shards, summary.skipped_shards) == (8, 3, 2)
    after = {entry.key: entry.etag for entry in output.list()}  # a folder's change when written
    assert {key: after[key] for key in before} == before

    then, now = (json.loads(place.read("summary.json")) for place in (Store(rest), output))
    assert now.items() >= then.items()
    said = (rest / "quarantine.jsonl").read_text().replace(SAID, SAYS)
    refused = [json.loads(line) for line in said.splitlines()]
    found = [json.loads(line) for line in output.read("quarantine.jsonl").splitlines()]
    assert found == [row | {"generation": 1} for row in refused]
    rows = pq.read_table(io.BytesIO(output.read("manifest.parquet")))
    assert rows["generation"].to_pylist() == [1] * 8
    expected = pq.read_table(rest / "manifest.parquet")
    sizes, were = rows["bytes"].to_pylist(), expected["bytes"].to_pylist()
    assert sizes == [len(output.read(key)) for key in rows["output"].to_pylist()]
    # Changes have travelled as float16 since, which rounds some levels of a picture the other way.
    assert sizes[:6] == were[:6] and all(abs(a - b) <= 8 for a, b in zip(sizes, were, strict=True))
    rows = rows.drop_columns(["output_sha256", "generation", "regions", "bytes"])
    expected = expected.drop_columns(["output_sha256", "bytes"])
    assert rows.equals(expected, check_metadata=True)
    made = sorted(path.relative_to(rest).as_posix() for path in (rest / "images").rglob("*.jpg"))
    assert sorted(after.keys() & set(made)) == made and len(made) == 2
    for key in made:
        found, was = output.read(key), (rest / key).read_bytes()
        assert read_provenance(found) == (read_provenance(was) or {}) | {"bs_ray": __version__}
        found, was = (np.asarray(Image.open(io.BytesIO(d)), dtype=int) for d in (found, was))
        off = np.abs(found - was)  # a level that rounds the other way moves its block of the JPEG
        assert off.mean() < 0.02 and off.max() <= 6, key
    earlier = json.loads(output.read("_bs_ray/drivers/00001.beat"))
    assert f"<td>{earlier['started']}</td><td>2</td>" in output.read("report.html").decode()

    # As the earlier version left it when it had finished; then the input has grown.
    for entry in output.list("generations/"):
        output.delete(entry.key)
    for name in ("manifest.parquet", "quarantine.jsonl", "summary.json"):
        output.write(name, (rest / name).read_bytes())
    Store(job.input).write("img-00006.jpg", Store(job.input).read("img-00000.jpg"))
    monkeypatch.setattr(run_module, "pipeline", HerePipeline)
    monkeypatch.setattr(write, "encode", encode)
    grown = edit(job, console=Console(file=io.StringIO()))
    assert grown.changes == {"new": 1, "changed": 0, "lost": 0, "gone": 0, "unchanged": 6}
    assert (grown.generation, grown.inputs, grown.outputs) == (2, 7, 10)
    again = {entry.key: entry.etag for entry in output.list("images/")}
    assert again.items() > {k: tag for k, tag in after.items() if k.startswith("images/")}.items()
    rows = pq.read_table(io.BytesIO(output.read("manifest.parquet")))
    assert rows["generation"].to_pylist() == [1] * 8 + [2] * 2


def test_a_packed_job_goes_on_with_its_own_edits(
    object_store: LocalObjectStore, old: Path, expected: dict[str, Any]
) -> None:
    job = load("jobs/edit-packed.yaml")
    upload(old / "ledger-packed" / "in", Store(job.input))
    upload(old / "ledger-packed" / "out", Store(job.output))
    prepared = prepare(job, Console(file=io.StringIO()))
    shards = range(prepared.input_list.shards)
    rows = [row for shard in shards for row in prepared.input_list.shard(shard)]
    found = [[r["key"], edits_of(r, prepared.edits, prepared.references)] for r in rows]
    # Until now a slider was called smile where it is called smile@1 from here on.
    was = json.dumps(expected["packed"])
    for name in ("smile", "grin"):
        was = was.replace(f'"{name}"', f'"{name}@1"')
    assert found == json.loads(was) and len(found) == 3

    with pytest.raises(JobChangedError, match=r"editor\.strength: got 0\.3, expected 0\.4"):
        prepare(load("jobs/edit-packed.yaml", ["editor.strength=0.3"]), Console(file=io.StringIO()))
