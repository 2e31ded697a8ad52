"""An evaluation through Ray Data: one table, figures that follow from it, one page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bs_ray.bench.bank import random_slider
from bs_ray.config import EditorSettings, EvalJob
from bs_ray.evaluate.run import check, evaluate
from bs_ray.evaluate.sweep import tasks
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.registry import Registry


@pytest.fixture(scope="module")
def registry(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("sliders"))
    Registry(folder).publish(random_slider(load_base(str(random_base)), "smile", 0))
    return folder


def make_job(random_base: Path, registry: str, output: Path, **changes) -> EvalJob:
    return EvalJob(
        name="test",
        base=str(random_base),
        registry=registry,
        output=str(output),
        batch_size=2,
        editor=EditorSettings(steps=2),
        **{"sliders": {"smile": "smile"}, "settings": {"faces": 3, "text": 2}} | changes,
    )


def test_table_figures_and_report(ray_cluster, random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path / "out", base_images=4)
    figures = evaluate(job)
    table = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert len(table) == (3 + 2) * len(job.strengths)
    assert not table.duplicated(["setting", "slider", "face", "strength"]).any()

    rows = table[table["setting"] == "faces"].set_index(["face", "strength"])["readings"]
    moves = [rows[face, 1.0][0] - rows[face, -1.0][0] for face in range(3)]
    found = figures["sliders"]["smile"]["faces"]
    assert found["effect"] == pytest.approx(float(np.mean(moves)), abs=1e-6)
    assert found["zero_exact"] is True
    assert set(figures["base"]["class_accuracy"]) == {
        "smile", "age", "chubby", "glasses", "hair_length"
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == figures
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # a plot and two strips
    assert "Slider" in page and "N = 4" in page


def test_the_grid_covers_every_face_once(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, settings={"faces": 5, "wild": 2})
    covered = [(t.setting, t.first + i) for t in tasks(job) for i in range(t.count)]
    assert sorted(covered) == sorted(
        [("faces", i) for i in range(5)] + [("wild", i) for i in (0, 1)]
    )


def test_an_unknown_attribute_is_refused(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, sliders={"smile": "grin"})
    with pytest.raises(BaseNotFound, match="got attribute 'grin'; expected one of smile"):
        check(job)
