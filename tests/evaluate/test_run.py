"""An evaluation through Ray Data: one table, figures that follow from it, one page."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs_ray.evaluate.compare import match
from rich.console import Console

from bs_ray.config import EditorSettings, EvalJob
from bs_ray.config.evaluate import ComparedSettings
from bs_ray.evaluate.methods import compare, methods_table
from bs_ray.evaluate.run import check, evaluate
from bs_ray.evaluate.sweep import tasks
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.registry import Registry
from bs_ray.testing import random_slider


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
        **{"sliders": {"smile": "smile"}, "splits": {"faces": 3, "text": 2}} | changes,
    )


def test_table_figures_and_report(ray_cluster, random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path / "out", base_images=4)
    screen = io.StringIO()
    figures = evaluate(job, console=Console(file=screen, width=120))
    assert "9/9 faces" in screen.getvalue()
    table = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert len(table) == (3 + 2) * len(job.strengths)
    assert not table.duplicated(["setting", "slider", "face", "strength"]).any()

    rows = table[table["setting"] == "faces"].set_index(["face", "strength"])["readings"]
    moves = [rows[face, 1.0][0] - rows[face, -1.0][0] for face in range(3)]
    found = figures["sliders"]["smile"]["faces"]
    assert found["effect"] == pytest.approx(float(np.mean(moves)), abs=1e-6)
    assert found["zero_exact"] is True
    low, high = found["intervals"]["effect"]
    assert low < found["effect"] < high
    assert set(figures["base"]["class_accuracy"]) == {
        "smile",
        "age",
        "chubby",
        "glasses",
        "hair_length",
    }
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == figures
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # two plots, and two strips in two halves
    assert figures["interference"]["smile"]["smile"] == pytest.approx(found["effect"], abs=1e-6)
    assert len(figures["interference"]["smile"]) == 12
    assert "Slider" in page and "N = 4" in page


def test_the_grid_covers_every_face_once(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, splits={"faces": 5, "wild": 2})
    covered = [(t.split, t.first + i) for t in tasks(job) for i in range(t.count)]
    assert sorted(covered) == sorted(
        [("faces", i) for i in range(5)] + [("wild", i) for i in (0, 1)]
    )


def test_an_unknown_attribute_is_refused(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, sliders={"smile": "grin"})
    with pytest.raises(BaseNotFound, match="got attribute 'grin'; expected one of smile"):
        check(job)


# --- methods side by side ---------------------------------------------------------------------
METHODS = {
    "ours": ComparedSettings(steps=2),
    "re-noised": ComparedSettings(method="sdedit", steps=2),
    "inverted": ComparedSettings(method="ddim_inversion", steps=2),
}


def test_match_takes_the_least_scale_that_reaches_the_goal() -> None:
    scales = (-2.0, -1.0, 1.0, 2.0)
    readings = np.array([[0.2, 0.4, 0.6, 0.9], [0.0, 0.2, 0.4, 0.9]])
    # From -1 to 1 the mean moves by 0.2, from -2 to 2 by 0.8.
    assert match(0.1, scales, readings) == pytest.approx((0.5, 0.1))
    assert match(0.5, scales, readings) == pytest.approx((1.5, 0.5))
    assert match(0.9, scales, readings) == pytest.approx((2.0, 0.8))


def test_methods_are_compared_and_a_second_run_measures_nothing_again(
    ray_cluster, random_base, registry, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("bs_ray.evaluate.compare._MATCH_FACES", 2)
    job = make_job(
        random_base,
        registry,
        tmp_path / "out",
        methods=METHODS,
        effects={"smile": 0.01},
        splits={"faces": 3, "wild": 2},
        seeds=2,
    )
    figures = compare(job)
    found = {(row["method"], row["setting"]): row for row in figures["methods"]}
    assert len(found) == 6 and {row["faces"] for row in found.values()} == {3, 2}
    assert {row["seeds"] for row in found.values() if row["setting"] == "faces"} == {2}
    ours, others = found["ours", "wild"], found["re-noised", "wild"]
    assert ours["pixels_at_zero"] == 0 and ours["drift_at_zero"] < 1e-6  # the reader's floats
    assert others["pixels_at_zero"] > 0.01
    evaluations = {m: figures["costs"][m]["evaluations"] for m in METHODS}
    assert evaluations == {"ours": 4, "re-noised": 2, "inverted": 4}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "re-noised" in page
    assert json.loads((tmp_path / "out" / "methods.json").read_text()) == figures
    text = Console(width=80, file=io.StringIO(), record=True)
    text.print(methods_table(figures))
    assert "re-noised" in (printed := text.export_text()) and "…" not in printed

    monkeypatch.setattr("bs_ray.evaluate.methods.measured", None)  # would be called otherwise
    again = compare(job)
    assert again["methods"] == figures["methods"]


def test_methods_without_a_common_effect_are_refused(random_base, registry, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"got effects for \[\] with methods; expected one for each"
    ):
        make_job(random_base, registry, tmp_path, methods=METHODS, splits={"faces": 3})
