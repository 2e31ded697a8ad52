"""An evaluation through Ray Data: one table, figures that follow from it, one page; and again."""

import csv
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from bs_ray.config import EditorSettings, EvalJob, JobError
from bs_ray.config.evaluate import ComparedSettings
from bs_ray.evaluate import run as run_module
from bs_ray.evaluate.arms import arms_of
from bs_ray.evaluate.run import check, evaluate
from bs_ray.evaluate.splits import open_splits
from bs_ray.evaluate.sweep import sweep_tasks
from bs_ray.evaluate.tables import terminal_table
from bs_ray.judges.judge import JudgeUnavailable
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.testing import random_slider

OWN = {kind: ["own"] for kind in ("identity", "attributes", "perceptual", "clip")}


@pytest.fixture(scope="module")
def registry(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """smile@1 and smile@2."""
    folder = str(tmp_path_factory.mktemp("sliders"))
    for seed in range(2):
        Registry(folder).publish(random_slider(load_base(str(random_base)), "smile", seed))
    return folder


def make_job(random_base: Path, registry: str, output: Path | str, **changes) -> EvalJob:
    return EvalJob(
        name="test",
        base=str(random_base),
        registry=registry,
        output=str(output),
        batch_size=2,
        editor=EditorSettings(steps=2),
        **{"sliders": {"smile": "smile"}, "splits": {"faces": 3, "text": 2}} | changes,
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are measured here, one after another: what is tested needs no Ray."""

    def stream(worker, tasks, actors, gpus):
        at_work = worker()
        for number, task in enumerate(tasks):
            yield number, pd.DataFrame(at_work.measure(task))

    monkeypatch.setattr(run_module, "_stream", stream)
    monkeypatch.setattr(run_module, "ray_session", lambda **_: nullcontext())
    monkeypatch.setattr(run_module.ray, "cluster_resources", dict)


def test_table_figures_and_report(
    ray_cluster, random_base, registry, tmp_path: Path, monkeypatch
) -> None:
    job = make_job(random_base, registry, tmp_path / "out", base_images=4)
    screen = io.StringIO()
    figures = evaluate(job, console=Console(file=screen, width=120))
    assert "9/9 faces" in screen.getvalue()
    table = pd.read_parquet(tmp_path / "out" / "metrics.parquet")
    assert len(table) == (3 + 2) * len(job.strengths)
    assert not table.duplicated(["split", "group", "arm", "item", "strength"]).any()

    rows = table[table["split"] == "faces"].set_index(["item", "strength"])["own-reader/smile"]
    moves = [rows[face, 1.0] - rows[face, -1.0] for face in range(3)]
    found = figures["sliders"]["smile"]["faces"]
    assert found["effect"] == pytest.approx(float(np.mean(moves)), abs=1e-6)
    assert found["zero_exact"] is True and found["slider"] == "smile@2"
    short = {
        name: figures["sliders"]["smile"][name] for name in ("judged_change", "zero_exact", "n")
    }
    assert short == {"judged_change": found["effect"], "zero_exact": True, "n": 3}
    low, high = found["intervals"]["effect"]
    assert low < found["effect"] < high
    assert {"drift_other", "monotone_share", "identity", "perceptual", "clip_change"} <= set(found)
    assert found["identity"] == pytest.approx(1 - found["identity_distance"])
    classes = {"smile", "age", "chubby", "glasses", "hair_length"}
    assert set(figures["base"]["class_accuracy"]) == classes
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == figures
    page = (tmp_path / "out" / "report.html").read_text()
    # Two plots, two strips in two halves, interference.
    assert page.count("data:image/png;base64,") == 7
    assert "http" not in page.replace("http-equiv", "")  # it needs no other file
    assert figures["interference"]["smile"]["smile"] == pytest.approx(found["effect"], abs=1e-6)
    assert len(figures["interference"]["smile"]) == 12
    assert "own-reader" in page and "N = 4" in page

    lines = list(csv.DictReader((tmp_path / "out" / "tables.csv").open()))
    [effect] = [x for x in lines if x["column"].startswith("effect") and "faces" in x["row"]]
    assert float(effect["value"]) == found["effect"] and float(effect["low"]) == low
    assert "| smile | faces |" in (tmp_path / "out" / "tables.md").read_text()
    assert "smile & faces" in (tmp_path / "out" / "tables.tex").read_text()

    monkeypatch.setattr(run_module, "_stream", None)  # would be called otherwise
    assert evaluate(job) == figures
    fewer = job.model_copy(update={"splits": {"faces": 2}, "base_images": 0})
    assert evaluate(fewer)["sliders"]["smile"]["faces"]["faces"] == 2
    with pytest.raises(JobError, match=r"strengths \[-2.0, .*\], now \[-1.0, 0.0, 1.0\]"):
        evaluate(job.model_copy(update={"strengths": [-1.0, 0.0, 1.0]}))


def test_a_killed_run_goes_on_where_it_stopped(
    in_process, random_base, registry, tmp_path: Path, monkeypatch
) -> None:
    words = {"positive": "a person, old", "negative": "a person, young", "moves": "age"}
    sliders = {"older": words}
    job = make_job(random_base, registry, tmp_path / "whole", splits={"faces": 5}, sliders=sliders)
    whole = evaluate(job)
    older = whole["sliders"]["older"]
    assert older["faces"]["measure"] == "own-reader/age" and older["faces"]["effect"] != 0
    assert older["faces"]["slider"].startswith("older@w")
    stream, done = run_module._stream, []

    def killed(*asked):
        for number, rows in stream(*asked):
            if len(done) == 1:
                raise KeyboardInterrupt
            done.append(number)
            yield number, rows

    again = job.model_copy(update={"output": str(tmp_path / "cut")})
    monkeypatch.setattr(run_module, "_stream", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(again)
    asked: list[int] = []

    def counted(worker, tasks, *rest):
        asked.append(len(tasks))
        return stream(worker, tasks, *rest)

    monkeypatch.setattr(run_module, "_stream", counted)
    assert evaluate(again) == whole and asked == [2]


def test_the_grid_covers_every_face_once(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, splits={"faces": 5, "wild": 2})
    tasks = sweep_tasks(job, arms_of(job), open_splits(job))
    covered = [(t.split, t.first + i) for t in tasks for i in range(t.count)]
    assert sorted(covered) == sorted(
        [("faces", i) for i in range(5)] + [("wild", i) for i in (0, 1)]
    )


def test_an_unknown_attribute_is_refused(random_base, registry, tmp_path: Path) -> None:
    job = make_job(random_base, registry, tmp_path, sliders={"smile": "grin"})
    with pytest.raises(JudgeUnavailable, match="got attribute 'grin'; expected one of smile"):
        check(job, arms_of(job), open_splits(job))


def test_photos_and_prompts_of_the_users_own(
    in_process, random_base, registry, saved: Callable[..., bytes], bucket: Store
) -> None:
    """From a bucket and into it; effect from CLIP's direction between the slider's own prompts."""
    for who in ("ann", "bob"):
        for n in range(2):
            photo = Image.effect_noise((90, 70), 60 + 10 * n).convert("RGB")
            bucket.write(f"in/{who}/{n}.png", saved(photo, "PNG"))
    bucket.write("in/cy.png", b"\x89PNG broken")
    bucket.write("people.csv", b"case_number,prompt,evaluation_seed\n0,a person,5\n1,a face,6\n")
    photos = {"photos": bucket.join("in").uri, "identities": True}
    job = make_job(
        random_base,
        registry,
        bucket.join("out").uri,
        sliders={"smile": "clip"},
        splits={"mine": photos, "prompts": {"prompts": f"{bucket.uri}/people.csv"}},
        judges=OWN,
    )
    figures = evaluate(job)
    mine, drawn = (figures["sliders"]["smile"][name] for name in ("mine", "prompts"))
    assert (mine["faces"], mine["left_out"]) == (2, {"not an image": 1})
    assert drawn["faces"] == 2 and mine["measure"] == drawn["measure"] == "own-clip/smile"
    assert mine["zero_exact"] and mine["effect"] != 0 and mine["step_spread"] >= 0
    test = figures["splits"]["mine"]["identity_test"]["own-identity"]
    assert (test["same_pairs"], test["other_pairs"]) == (2, 2)
    assert json.loads(bucket.read("out/metrics.json")) == figures
    assert b"data:image/png;base64," in bucket.read("out/report.html")
    rows = pd.read_parquet(io.BytesIO(bucket.read("out/metrics.parquet")))
    own = rows[(rows["split"] == "mine") & rows["picture"].notna()]
    with Image.open(io.BytesIO(own["picture"].iloc[0])) as picture:
        assert picture.size == (90, 70)


# --- side by side -------------------------------------------------------------------------------
METHODS = {
    "ours": ComparedSettings(steps=2),
    "re-noised": ComparedSettings(method="sdedit", steps=2),
    "inverted": ComparedSettings(method="ddim_inversion", steps=2),
}


def test_methods_are_compared(in_process, random_base, registry, tmp_path: Path) -> None:
    job = make_job(
        random_base,
        registry,
        tmp_path / "out",
        methods=METHODS,
        effects={"smile": 0.01},
        splits={"faces": 3, "wild": 2},
        seeds=2,
    )
    figures = evaluate(job)
    found = {(row["method"], row["setting"]): row for row in figures["methods"]}
    assert len(found) == 6 and {row["faces"] for row in found.values()} == {3, 2}
    assert {row["seeds"] for row in found.values() if row["setting"] == "faces"} == {2}
    ours, others = found["ours", "wild"], found["re-noised", "wild"]
    assert ours["pixels_at_zero"] == 0 and ours["drift_at_zero"] < 1e-6  # the reader's floats
    assert others["pixels_at_zero"] > 0.01
    assert ours["perceptual_64"] == ours["perceptual"]
    evaluations = {m: figures["costs"][m]["evaluations"] for m in METHODS}
    assert evaluations == {"ours": 4, "re-noised": 2, "inverted": 4}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/") == 5 and "re-noised" in page
    assert json.loads((tmp_path / "out" / "methods.json").read_text()) == figures
    _, heads, rows = terminal_table(figures)[0]
    assert "drift" in heads and ["re-noised", "wild"] in [row[:2] for row in rows]


def test_versions_are_compared_with_a_verdict(
    in_process, random_base, registry, tmp_path: Path
) -> None:
    """A file of one of them is the same arm under another name, and so no better."""
    file = f"{registry}/smile/0001.safetensors"
    job = make_job(
        random_base,
        registry,
        tmp_path / "out",
        sliders={},
        compare=["smile@1", "smile@2", file],
        splits={"faces": 4},
        at_effect=0.001,
    )
    figures = evaluate(job)
    its = figures["comparisons"]["faces"]
    assert list(its["arms"]) == ["smile@1", "smile@2", "smile 0001"] and its["faces"] == 4
    assert its["measure"] == "own-reader/smile" and set(figures["sliders"]) == set(its["arms"])
    same = its["differences"]["smile 0001"]
    assert all(one["difference"] == 0 for one in same.values())
    assert its["verdicts"]["smile 0001"]["answer"] in ("equal", "not comparable")
    assert "smile@2" in its["verdicts"]["smile@2"]["sentence"]
    assert set(figures["costs"]) == set(its["arms"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert its["verdicts"]["smile@2"]["sentence"].split(":")[0] in page


def test_methods_without_a_common_effect_are_refused(random_base, registry, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"got effects for \[\] with methods; expected one for each"
    ):
        make_job(random_base, registry, tmp_path, methods=METHODS, splits={"faces": 3})
