"""Old job files, Concept Sliders' files and keys: the same meaning as before."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bs_ray.config import (
    Job,
    as_begun_before,
    concept_sliders,
    flat_settings,
    job_hash,
    job_of,
    load,
)
from bs_ray.serve.http.keys import KeyRing
from bs_ray.serve.http.problems import Problem


def read(entry: str) -> Job:
    """The job of an entry: a file's name, then overrides."""
    name, *overrides = entry.split()
    if name.startswith("concept-sliders/"):
        return concept_sliders.read(Path(name), ["photos=photos"])[0]
    return load(f"jobs/{name}", overrides)


def test_job_files_mean_what_they_meant(old: Path, expected: dict[str, Any]) -> None:
    """The settings as they were stored, all of them, make the same job as its file does today.

    What a training job leaves out of its losses means something else since; a run that has begun
    keeps the earlier meaning.
    """
    kinds = Counter()
    for entry, meaning in expected["jobs"].items():
        job = read(entry)
        if job.kind == "train":
            job = as_begun_before(job)
        assert job_of(meaning["settings"], "stored") == job, entry
        kinds[job.kind] += 1
        if job.kind == "train":  # the one kind whose runs are found by this hash
            assert job_hash(job) == meaning["hash"], entry
            stored = flat_settings(meaning["settings"])
            now = flat_settings(job.model_dump(mode="json"))
            assert {name: now[name] for name in stored} == stored, entry
    assert kinds == {"train": 6, "edit": 4, "serve": 1, "evaluate": 3}
    assert {path.name for path in Path("jobs").iterdir()} <= expected["jobs"].keys()


def test_old_names_are_read_under_the_new_ones(old: Path) -> None:
    assert load("jobs/edit.yaml").editor.start == 0.5
    assert load("jobs/edit-packed.yaml", ["editor.strength=0.3"]).editor.start == 0.3
    assert load("jobs/edit-packed.yaml").edits_column == "edits"
    assert load("jobs/evaluate.yaml").splits == {"faces": 64, "wild": 32, "text": 16}
    assert load("jobs/evaluate-methods.yaml").methods["sdedit"].start == 0.5
    assert load("jobs/evaluate-methods.yaml").methods["infedit"].steer == 1.5


def test_a_keys_file_knows_its_keys(old: Path, expected: dict[str, Any]) -> None:
    ring = KeyRing.load("keys.yaml")

    def authenticated(secret: str) -> Any:
        return asyncio.run(ring.authenticate(f"Bearer {secret}"))

    everything, limited = (authenticated(expected["keys"][n]) for n in ("everything", "limited"))
    assert (everything.id, limited.id) == ("everything", "limited")
    assert everything.allows("chubby") and everything.requests_per_minute is None
    assert limited.allows("age-old@3") and not limited.allows("chubby")
    assert (limited.requests_per_minute, limited.burst) == (600, 5)
    with pytest.raises(Problem):
        authenticated(expected["keys"]["limited"][:-1])
