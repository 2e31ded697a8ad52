"""The command line: exit codes and messages for everything a user can get wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bs_ray import cli
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.testing import random_slider
from tests.promptly import promptly

TRAIN = """
kind: train
name: smile
base: {base}
prompts: {{target: a, positive: b, negative: c}}
photos: {photos}
registry: {folder}/sliders
runs: {folder}/runs
"""
EDIT = """
kind: edit
name: wild
base: {base}
input: {photos}
output: {folder}/out
registry: {folder}/sliders
sliders: {{smile: 1.0}}
"""


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str):
    """(exit code, stderr on one line) of a command line."""
    monkeypatch.setattr(sys, "argv", ["bs-ray", *words])
    with promptly(), pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0, " ".join(capsys.readouterr().err.split())


@pytest.fixture
def job(tmp_path: Path, random_base: Path):
    """Writes a job file; settings can be changed by name."""

    def write(text: str, **changes: str) -> str:
        values = {"base": random_base, "photos": tmp_path / "photos", "folder": tmp_path} | changes
        path = tmp_path / "job.yaml"
        path.write_text(text.format(**values))
        return str(path)

    (tmp_path / "photos").mkdir()
    return write


@pytest.fixture
def published(tmp_path: Path, random_base: Path) -> Registry:
    registry = Registry(str(tmp_path / "sliders"))
    registry.publish(random_slider(load_base(str(random_base)), "smile", 0))
    return registry


def refused(outcome: tuple[int, str], *parts: str) -> None:
    code, message = outcome
    assert code == 2, message
    for part in ("got", "expected", *parts):
        assert part in message


def test_unknown_key(job, monkeypatch, capsys) -> None:
    words = ["train", job(TRAIN), "losses.perceptul=2"]
    refused(run(monkeypatch, capsys, *words), "losses.perceptul", "did you mean 'perceptual'")


def test_brackets_of_a_message_are_not_markup(job, monkeypatch, capsys) -> None:
    words = ["train", job(TRAIN, base="no[male, female]base")]
    refused(run(monkeypatch, capsys, *words), "no[male, female]base")


def test_unknown_command_line_option(monkeypatch, capsys) -> None:
    code, message = run(monkeypatch, capsys, "train", "--fast")
    assert code == 2 and "No such option" in message


def test_base_not_found(job, monkeypatch, capsys) -> None:
    words = ["train", job(TRAIN, base="/no/such/base")]
    refused(run(monkeypatch, capsys, *words), "/no/such/base", "diffusers folder")


def test_empty_input(job, published, monkeypatch, capsys) -> None:
    refused(run(monkeypatch, capsys, "edit", job(EDIT)), "photos")


def test_missing_slider(job, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "sliders").mkdir()
    refused(run(monkeypatch, capsys, "edit", job(EDIT)), "'smile'", "bs-ray train")


def test_slider_for_another_base(job, published, tmp_path, monkeypatch, capsys) -> None:
    from bs_ray.tiny.recipe import write_untrained_base

    write_untrained_base(tmp_path / "other", seed=1)
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    words = ["edit", job(EDIT, base=str(tmp_path / "other")), "other_bases=refuse"]
    refused(run(monkeypatch, capsys, *words), "slider smile@1", "which it was trained on")


def test_missing_bucket_and_wrong_credentials(job, object_store, published, monkeypatch, capsys):
    words = ["edit", job(EDIT, photos="s3://no-such-bucket/in")]
    code, message = run(monkeypatch, capsys, *words)
    assert code == 2 and "no-such-bucket" in message
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    words = ["edit", job(EDIT, photos="s3://bs-ray-tests/in")]
    code, message = run(monkeypatch, capsys, *words)
    assert code == 2 and "bs-ray-tests" in message
    assert "wrong" not in message


def test_a_card_is_shown_without_the_losses_of_each_step(tmp_path, random_base, capsys) -> None:
    slider = random_slider(load_base(str(random_base)), "smile", 0)
    training = {"steps": 2, "history": [{"step": 0.0}, {"step": 1.0}]}
    card = slider.card.model_copy(update={"training": training})
    Registry(str(tmp_path)).publish(replace(slider, card=card))
    cli.sliders.sliders_show("smile", str(tmp_path))
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "smile" and shown["training"] == {"steps": 2}


def test_an_empty_registry_says_so(tmp_path, capsys) -> None:
    cli.sliders.sliders_list(str(tmp_path))
    assert f"no sliders in {tmp_path}" in capsys.readouterr().out


def test_help_names_every_verb_and_loads_nothing_slow() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "bs_ray", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "bs_ray.cli" in loaded
    assert not loaded & {"torch", "ray", "diffusers", "transformers", "deepspeed"}
    for verb in (
        "demo",
        "train",
        "edit",
        "serve",
        "evaluate",
        "tiny",
        "ingest",
        "sliders",
        "submit",
        "bench",
        "doctor",
    ):
        assert verb in done.stdout
