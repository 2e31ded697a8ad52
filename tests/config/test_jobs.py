"""Every shipped job file is a value of a class of config.py."""

from pathlib import Path

import pytest

from bs_ray.config import load

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize(
    "path", sorted(JOBS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(JOBS))
)
def test_it_loads_and_begins_with_what_it_is(path: Path) -> None:
    job, text = load(path), path.read_text()
    assert text.startswith("#") and f"kind: {job.kind}" in text
