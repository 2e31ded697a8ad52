"""A table of methods: rows at equal effect, the paper's figures beside them, and first steps."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from bs_ray.bench.fullsize import cache_samples, random_base
from bs_ray.bench.table import sliders as table_sliders
from bs_ray.bench.table.run import make_table, plan_table
from bs_ray.config import TableJob, TrainJob, load
from bs_ray.datasets.pool import PhotoPool
from bs_ray.datasets.sources import iter_photos
from bs_ray.evaluate import run as evaluate_run
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.registry import Registry
from bs_ray.testing import random_slider
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import assemble, one_step

JOBS = Path(__file__).parents[2] / "jobs"


def table(name: str, *overrides: str) -> TableJob:
    job = load(JOBS / name, list(overrides))
    assert isinstance(job, TableJob)
    return job


@pytest.fixture
def job(random_base: Path, tmp_path: Path) -> TableJob:
    """Two rows, four methods, on the base of random weights."""
    (tmp_path / "photos").mkdir()
    Image.effect_noise((32, 32), 50).save(tmp_path / "photos" / "one.png")
    prompts = {"target": "a person", "positive": "a person, old", "negative": "a person, young"}
    return TableJob.model_validate(
        {
            "name": "small",
            "base": str(random_base),
            "photos": str(tmp_path / "photos"),
            "registry": str(tmp_path / "sliders"),
            "runs": str(tmp_path / "runs"),
            "output": str(tmp_path / "out"),
            "sliders": {"age": prompts},
            "train": {"losses": {"perceptual": 0}},
            "methods": {
                "reference": {"seed": 1},
                "full": {"losses": {"perceptual": 1}},
                "ours": {"seed": 2},
                "instant": "words",
            },
            "rows": {
                "text": {"slider": "age", "split": "text"},
                "faces": {
                    "slider": "age",
                    "split": "faces",
                    "in_paper": "hair",
                    "paper": {"ours": {"clip": 29.06, "lpips": 0.026}},
                },
            },
            "splits": {"text": 2, "faces": 3},
            "strengths": [-2, -1, 0, 1, 2],
            "editor": {"steps": 2},
            "batch_size": 4,
        }
    )


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sliders of random weights in place of trained ones; edits are made in this process; there is
    no perceptual network. The names of what was trained."""
    trained: list[str] = []

    def none(*_: object) -> None:
        raise BaseNotFound("got no VGG16")

    def train(job: TrainJob, console: Console) -> SimpleNamespace:
        trained.append(job.name)
        made = random_slider(load_base(job.base), job.name, job.seed)
        return SimpleNamespace(slider=Registry(job.registry).publish(made).reference, seconds=1.0)

    def stream(worker, tasks, actors, gpus):
        at_work = worker()
        for number, task in enumerate(tasks):
            yield number, pd.DataFrame(at_work.measure(task))

    monkeypatch.setattr(table_sliders, "load_features", none)
    monkeypatch.setattr(table_sliders, "train", train)
    monkeypatch.setattr(evaluate_run, "_stream", stream)
    return trained


def test_rows_at_equal_effect_with_the_papers_figures_apart(
    ray_cluster, job: TableJob, no_workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = make_table(job, console=Console(file=io.StringIO()))
    assert no_workers == ["age-reference", "age-ours"]
    assert list(figures["rows"]) == ["text", "faces"]
    out = Path(job.output)
    evaluated = json.loads((out / "age" / "metrics.json").read_text())
    for label, row in figures["rows"].items():
        theirs = evaluated["comparisons"][row["split"]]
        for method in ("reference", "ours", "instant"):
            mine = row[method]
            assert mine["n"] == {"text": 2, "faces": 3}[label]
            assert mine["drift"] == pytest.approx(theirs["arms"][method]["drift"])
            assert mine["lpips"] == pytest.approx(theirs["arms"][method]["perceptual"])
            assert mine["effect"] == pytest.approx(theirs["arms"][method]["effect"])
            assert mine["lpips64"] == pytest.approx(mine["lpips"])  # its judge looks at 64 px
            assert mine["identity"] == pytest.approx(1 - mine["identity_distance"])
            assert {"clip", "clip_change", "lpips64"} <= set(mine["unmatched"])
        assert set(row["verdicts"]) == {"ours", "instant"}
    rows = pd.read_parquet(out / "age" / "metrics.parquet")
    own = rows[(rows["split"] == "faces") & (rows["arm"] == "ours") & (rows["strength"] == 1)]
    mine = figures["rows"]["faces"]["ours"]["unmatched"]
    assert mine["clip"] == pytest.approx(own["own-clip/compared+"].mean())

    assert json.loads((out / "table.json").read_text()) == figures
    lines = list(csv.DictReader((out / "table.csv").open()))
    paper = [line for line in lines if line["column"].startswith("the paper's")]
    assert [float(line["value"]) for line in paper] == [29.06, 0.026]
    assert {line["row"] for line in paper} == {"faces (in place of hair) / ours"}
    page = (out / "table.html").read_text()
    assert page.count("data:image/") == 2 and "http" not in page.replace("http-equiv", "")
    assert figures["rows"]["faces"]["verdicts"]["ours"]["sentence"] in page
    assert "| faces (in place of hair) | ours |" in (out / "table.md").read_text()
    # What cannot be trained here is left out and said.
    assert figures["absent"] == {"full": "got no VGG16"} and row["full"] is None
    assert "full is left out: got no VGG16" in (out / "table.md").read_text()

    monkeypatch.setattr(evaluate_run, "_stream", None)  # would be called otherwise
    assert make_table(job)["rows"] == figures["rows"]


def test_one_method_is_no_table(job: TableJob, no_workers: list[str]) -> None:
    methods = {name: job.methods[name] for name in ("full", "instant")}
    with pytest.raises(ValueError, match="fewer than two that can be trained here"):
        make_table(job.model_copy(update={"methods": methods}))


def test_held_out_people_are_not_trained_on(tmp_path: Path) -> None:
    """Of these two, LFW's way of naming tells that the second is held out."""
    people = ["Ada_L", next(p for p in map("P_{}".format, range(99)) if _held(p))]
    for person in people:
        folder = tmp_path / "lfw" / person
        folder.mkdir(parents=True)
        Image.effect_noise((32, 32), 50).save(folder / f"{person}_0001.jpg")
    places = {"photos": str(tmp_path / "lfw"), "runs": str(tmp_path / "runs")}
    job = table("tiny-photo/table1.yaml").model_copy(update=places)
    packed = table_sliders.training_photos(job)
    assert packed and [row["identity"] for row in iter_photos(packed)] == ["Ada_L"]
    assert table_sliders.training_photos(job.model_copy(update={"photos": packed})) == packed


def _held(person: str) -> bool:
    return table_sliders.held_out(person)


def test_a_plan_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    job = table("tiny/table1.yaml")
    methods = {"ours": job.methods["ours"], "instant": "words"}
    found = plan_table(job.model_copy(update={"methods": methods}), None, Console())
    assert list(found) == ["ours"] and "4 sliders of 80" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("base", "px"), [("tiny", 64), pytest.param("sdxl-base-1.0", 256, marks=pytest.mark.slow)]
)
def test_every_method_of_the_tables_on_sdxl_takes_its_first_step(base: str, px: int) -> None:
    """Random weights in bfloat16; 12 GB of memory at SDXL's size."""
    model, features = random_base(base)
    pixels = torch.randint(256, (2, 3, px, px)).to(torch.uint8)
    photos = PhotoPool(["a", "b"], pixels, model)
    for name in ("train/table1-sdxl.yaml", "train/table2-sdxl.yaml"):
        job = table(name, f"train.resolution={px}")
        for method in job.methods:
            how = job.training("age", method)
            if how is None:
                continue
            teacher = how.teacher
            if teacher.mode == "cached":
                teacher = teacher.model_copy(update={"samples": 2})
            rows = min(2, how.batch_size)
            how = how.model_copy(update={"teacher": teacher, "batch_size": rows})
            samples = cache_samples(how, model, photos)
            state = assemble(how, model, photos, features, PlainEngine, samples=samples)
            before = [up.detach().clone() for up in state.bank.up.values()]
            one_step(state, 0)
            after = state.bank.up.values()
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), method
            state.bank.detach()
