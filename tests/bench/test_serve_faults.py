"""Replicas killed and rolled, and the registry's store killed, while people ask."""

from pathlib import Path

import pytest

from bs_ray.bench.serve import faults
from bs_ray.config import ServeJob
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.storage.seaweed import LocalObjectStore
from bs_ray.testing import random_slider

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.ray]


def test_nobody_who_asks_twice_is_refused(
    random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalObjectStore() as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        registry = Registry(f"{store.make_bucket('bs-ray-faults')}/sliders")
        model = load_base(str(random_base))
        for i in range(32):
            registry.publish(random_slider(model, f"s{i:02}", i))
        job = ServeJob.model_validate(
            {
                "name": "faults",
                "base": str(random_base),
                "sliders": ["*"],
                "registry": registry.store.uri,
                "editor": {"prompt": "a person", "steps": 4},
            }
        )
        lines: list[str] = []
        found = faults(job, store, lines.append)
    assert found["failed_after_one_retry"] == 0, lines
    assert found["killed_back_s"] < 30, lines  # 10 on a quiet machine
