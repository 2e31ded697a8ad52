"""Concept Sliders' own files, written as theirs are."""

import sys
from pathlib import Path

import pytest

from bs_ray import cli
from bs_ray.config import JobError
from bs_ray.config.concept_sliders import is_foreign, read

CONFIG = """
prompts_file: "data/prompts-mine.yaml"
pretrained_model:
  name_or_path: "stabilityai/some-base"
  v2: false
  v_pred: false
network:
  type: "c3lier"
  rank: 8
  alpha: 1.0
  training_method: "noxattn"
train:
  precision: "bfloat16"
  noise_scheduler: "ddim"
  iterations: 500
  lr: 2e-4
  optimizer: "AdamW"
  lr_scheduler: "constant"
  max_denoising_steps: 50
save:
  name: "Beardslider"
  path: "./models"
  per_steps: 100
  precision: "bfloat16"
logging:
  use_wandb: false
  verbose: false
other:
  use_xformers: true
"""
PROMPTS = """
- target: "man"
  positive: "man, beard"
  unconditional: "man, shaved"
  neutral: "man"
  action: "enhance"
  guidance_scale: 4
  resolution: 512
  dynamic_resolution: false
  batch_size: 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts-mine.yaml").write_text(PROMPTS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def test_a_config_becomes_a_job(config: Path) -> None:
    assert is_foreign(config)
    job, notes = read(config, ["base=tiny", "steps=7"])
    assert job.name == "beardslider" and job.base == "tiny" and job.steps == 7
    assert (job.rank, job.alpha, job.lr, job.checkpoint_every) == (8, 1.0, 2e-4, 100)
    assert job.prompts.negative == "man, shaved" and job.prompts.action == "enhance"
    assert job.losses.eta == 4 and job.resolution == 512 and job.batch_size == 1
    assert job.losses.perceptual == job.losses.adversarial == 0
    text = "\n".join(notes)
    for part in ("AdamW in bf16", "training_method noxattn: not read", "no photos: guidance"):
        assert part in text


def test_photos_bring_the_image_losses(config: Path) -> None:
    job, notes = read(config, ["photos=data/lfw", "batch_size=4"])
    assert job.losses.perceptual > 0 and not any("no photos" in note for note in notes)


def test_the_spelling_that_the_reference_ignores(tmp_path: Path) -> None:
    text = PROMPTS.replace("guidance_scale: 4", "guidance: 4\n  rank: 4")
    path = tmp_path / "prompts.yaml"
    path.write_text(text + text)
    assert is_foreign(path)
    job, notes = read(path, ["base=tiny", "name=beard"])
    assert job.losses.eta == 4 and job.rank == 4 and job.name == "beard"
    shown = "\n".join(notes)
    assert "guidance: 4 is read as guidance_scale; the reference ignores this" in shown
    assert "2 rows: the first is trained" in shown


def test_attributes_are_disentangled_and_erase_is_the_default(tmp_path: Path) -> None:
    text = PROMPTS.replace('action: "enhance"', "attributes: 'male, female'")
    (tmp_path / "p.yaml").write_text(text)
    job, _ = read(tmp_path / "p.yaml")
    assert job.prompts.disentangle == ["male", "female"] and job.prompts.action == "erase"
    assert job.losses.eta == 2  # the reference draws one of two a step, here they are summed


def test_rows_behind_attributes_are_read_as_such(tmp_path: Path) -> None:
    rows = [PROMPTS.replace('"man', f'"{word} man') for word in ("old", "young")]
    (tmp_path / "p.yaml").write_text("".join(rows))
    job, notes = read(tmp_path / "p.yaml")
    assert job.prompts.disentangle == ["old", "young"] and job.prompts.target == "man"
    assert job.prompts.positive == "man, beard" and job.losses.eta == 2
    assert any("attributes old, young: disentangled" in note for note in notes)


def test_what_is_left_out_is_the_reference_s_default(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROMPTS.replace('  neutral: "man"\n', ""))
    job, _ = read(tmp_path / "p.yaml", ["photos=x", "algorithm=concept_sliders"])
    assert job.prompts.neutral == "man, shaved" and job.losses.adversarial == 0


def test_every_key_that_is_not_read_is_named(config: Path) -> None:
    _, notes = read(config)
    text = "\n".join(notes)
    for key in ("network.type", "save.path", "train.noise_scheduler", "other.use_xformers"):
        assert key in text
    config.write_text(CONFIG.replace("v2: false", "v2: true"))
    with pytest.raises(JobError, match="got v2 true; expected an SDXL base"):
        read(config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("iterations", "iteratons", r"train: got unknown key 'iteratons'.*'iterations'"),
        ("network:", "netwrok:", r"got unknown key 'netwrok'.*did you mean 'network'"),
        ("prompts-mine", "prompts-none", "prompts_file: got data/prompts-none.yaml"),
    ],
)
def test_unknown_keys_are_named(config: Path, old: str, new: str, message: str) -> None:
    config.write_text(CONFIG.replace(old, new))
    with pytest.raises(JobError, match=message):
        read(config)


def test_unknown_keys_of_a_row_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PROMPTS.replace("guidance_scale", "guidance_scal"))
    with pytest.raises(JobError, match=r"row 1: got unknown key 'guidance_scal'.*guidance_scale"):
        read(path)
    path.write_text(PROMPTS.replace('positive: "man, beard"', ""))
    with pytest.raises(JobError, match="row 1: got no positive"):
        read(path)


def test_the_command_line_takes_them_and_says_what_it_read(config, monkeypatch, capsys) -> None:
    words = ["bs-ray", "train", str(config), "base=/no/such/base"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = " ".join(capsys.readouterr())
    assert stop.value.code == 2 and "is a file of Concept Sliders'" in shown
    assert "no photos: guidance loss alone" in shown and "/no/such/base" in shown
