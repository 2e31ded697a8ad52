"""A job over hostile files: every one accounted for, and no worker dies of any."""

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from bs_ray.batch import pipeline as module
from bs_ray.batch.fetch import fetch_shard
from bs_ray.batch.ledger import read_lines
from bs_ray.storage import Store
from tests.batch.conftest import MakeJob, run
from tests.images.poison import mutated, sound_photos


def noted_fetch(row: dict[str, Any], *, notes: str, **options: Any) -> dict[str, Any]:
    """fetch_shard that leaves a line when it begins and one when it has not died meanwhile."""
    for word, work in (("began", None), ("ended", fetch_shard)):
        found = work(row, **options) if work else row
        with open(notes, "a") as file:
            file.write(f"{word} {row['id']} {os.getpid()}\n")
    return found


def test_no_worker_dies_of_hostile_photos(
    ray_cluster: None, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [data for _, data in mutated(sound_photos(), 300, seed=5)]
    suffixes = (".jpg", ".png", ".webp", ".bmp", ".tif")
    inputs = {f"{i:04d}{suffixes[i % 5]}": data for i, data in enumerate(photos)}
    for key, data in inputs.items():
        Store(tmp_path / "in").write(key, data)
    notes = str(tmp_path / "notes")
    monkeypatch.setattr(module, "fetch_shard", functools.partial(noted_fetch, notes=notes))
    editor = {"steps": 1, "working_px": 16}
    job = make_job(editor=editor, shard_images=50, batch_size=25, max_quarantined_share=1)
    summary, _ = run(job)
    assert (summary.inputs, summary.edited + summary.quarantined) == (300, 300)
    assert summary.edited and summary.quarantined > 100
    assert [row["key"] for row in read_lines(Store(job.output), range(6))] == sorted(inputs)
    lines = [line.split()[0] for line in Path(notes).read_text().splitlines()]
    assert (lines.count("began"), lines.count("ended")) == (6, 6)
