"""Job files: what loads, and what the errors say."""

from pathlib import Path

import pytest
import yaml

from bs_ray.config import (
    EditJob,
    EditorSettings,
    EvalJob,
    JobError,
    TrainJob,
    as_begun_before,
    editor_settings,
    job_hash,
    job_of,
    load,
    shipped_job,
)

JOBS = Path(__file__).parents[2] / "jobs"
TRAIN = {
    "kind": "train",
    "name": "smile",
    "prompts": {"target": "a", "positive": "b", "negative": "c"},
    "photos": "data",
}


def write(folder: Path, values: dict) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    "path", sorted(JOBS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(JOBS))
)
def test_every_shipped_job_loads(path: Path) -> None:
    assert load(path).kind == yaml.safe_load(path.read_text())["kind"]


def test_overrides_reach_nested_settings(tmp_path: Path) -> None:
    job = load(write(tmp_path, TRAIN), ["steps=7", "losses.adversarial=0", "prompts.neutral=n"])
    assert isinstance(job, TrainJob)
    assert (job.steps, job.losses.adversarial, job.prompts.neutral) == (7, 0, "n")


@pytest.mark.parametrize(
    "text",
    ["shoot #2", "*.jpg", "@x", "2024-01-01", "a: b", "1e3", "yes", "[x", "null ", "a=b"],
)
def test_text_is_taken_as_it_is(tmp_path: Path, text: str) -> None:
    job = load(write(tmp_path, TRAIN), [f"photos={text}", f"prompts.target={text}"])
    assert isinstance(job, TrainJob) and job.prompts
    assert (job.photos, job.prompts.target) == (text, text)
    edit = load(JOBS / "tiny/edit-wild.yaml", [f"output={text}", f"editor.prompt={text}"])
    assert isinstance(edit, EditJob) and (edit.output, edit.editor.prompt) == (text, text)


def test_numbers_lists_and_maps_are_yaml(tmp_path: Path) -> None:
    given = ["workers=[1, 2]", "losses={adversarial: 0}", "use_gpu=false", "prompts.neutral=null"]
    job = load(write(tmp_path, TRAIN), given)
    assert isinstance(job, TrainJob) and job.prompts
    assert (job.workers, job.losses.adversarial, job.use_gpu) == ((1, 2), 0, False)
    assert job.prompts.neutral is None
    edit = load(JOBS / "tiny/edit-wild.yaml", ["sliders={smile: [-1, 1]}", "editor.faces=largest"])
    assert isinstance(edit, EditJob) and edit.sliders == {"smile": [-1, 1]}
    for wrong in ("steps=[1", "workers=*x", "steps=@x", "workers={a"):
        with pytest.raises(JobError, match="whose value is no YAML"):
            load(write(tmp_path, TRAIN), [wrong])
    for wrong in ("steps=2024-01-01", "no.such=[x", "stpes=*"):
        with pytest.raises(JobError, match=r"job\.yaml: .*got"):
            load(write(tmp_path, TRAIN), [wrong])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, "unknown key 'stpes'; expected a known setting; did you mean 'steps'"),
        (
            {"losses": {"perceptul": 1}},
            "unknown key 'losses.perceptul'; expected a known setting; did you mean 'perceptual'",
        ),
        ({"steps": "many"}, 'steps: got "many"'),
        ({"batch_size": 5, "workers": 2}, "batch_size 5 for 2 workers"),
        ({"name": "../up"}, "1-64 of a-z"),
        ({"kind": "trian"}, "got kind 'trian'; expected one of train"),
        ({"lr": float("nan")}, "lr: got NaN"),
        ({"photos": None}, "got no photos, but losses.perceptual"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(JobError) as error:
        load(write(tmp_path, TRAIN | change))
    assert message in str(error.value)


def test_wrong_kind_names_the_verb(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="got a train job; expected a edit job: try `bs-ray train"):
        load(write(tmp_path, TRAIN), kind="edit")


def test_files_that_are_no_jobs(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a")
    for name, message in (
        ("no.yaml", "not a file"),
        ("bad.yaml", "not YAML"),
        ("list.yaml", "list"),
    ):
        with pytest.raises(JobError, match=message):
            load(tmp_path / name)


def test_evaluation_needs_the_unit_strengths() -> None:
    with pytest.raises(ValueError, match="expected -1, 0 and 1"):
        EvalJob(name="e", sliders={"smile": "smile"}, strengths=[-2, 0, 2])


def test_editors_of_earlier_versions(tmp_path: Path) -> None:
    """What bought nothing is no setting any more; job files that have it still say what they
    mean, or are told."""
    values = yaml.safe_load((JOBS / "tiny/edit-wild.yaml").read_text())

    def loaded(**editor: object) -> EditorSettings:
        job = load(write(tmp_path, values | {"editor": editor}))
        assert isinstance(job, EditJob)
        return job.editor

    assert loaded(preset="balanced") == loaded(steps=16, start=0.7)
    assert loaded(preset="balanced", steps=5) == loaded(steps=5, start=0.7)
    assert loaded(weights="flowedit", steer=1, strength=0.5) == loaded(start=0.5)
    for gone in ({"weights": "dds"}, {"steer": 1.5}):
        [(name, value)] = gone.items()
        with pytest.raises(JobError, match=rf"editor: got {name} {value!r}, .* leave it out"):
            loaded(**gone)


def test_job_hash_follows_the_settings() -> None:
    job = shipped_job("tiny/edit-wild.yaml")
    assert isinstance(job, EditJob)
    assert job_hash(job) == job_hash(shipped_job("tiny/edit-wild.yaml"))
    assert job_hash(job) != job_hash(job.model_copy(update={"seed": 1}))


OLD_EDIT = {
    "kind": "edit",
    "name": "e",
    "input": "in",
    "output": "out",
    "sliders": {"smile": [1, 2]},
    "input_format": "parquet",
    "plan": "todo",
    "editor": {"steps": 4, "strength": 0.5},
}
OLD_EVALUATION = {
    "kind": "evaluate",
    "name": "v",
    "sliders": {"smile": "smile"},
    "settings": {"faces": 3},
    "methods": {"fast": {"preset": "fast", "strength": 0.4}},
    "effects": {"smile": 0.1},
}
"""Job files with the names of an earlier version."""


def test_a_training_job_keeps_the_hash_of_an_earlier_version(tmp_path: Path) -> None:
    """By it a run finds its checkpoints."""
    assert job_hash(as_begun_before(load(write(tmp_path, TRAIN)))) == "fce6e2f526fe3a42"


def test_old_names_are_read_as_the_new_ones(tmp_path: Path) -> None:
    edit = load(write(tmp_path, OLD_EDIT))
    assert isinstance(edit, EditJob)
    assert (edit.edits_column, edit.editor.start) == ("todo", 0.5)
    measured = load(write(tmp_path, OLD_EVALUATION))
    assert isinstance(measured, EvalJob)
    assert measured.splits == {"faces": 3} and measured.methods["fast"].start == 0.4


def test_an_old_name_beside_the_new_one_is_refused(tmp_path: Path) -> None:
    job = write(tmp_path, OLD_EDIT)
    with pytest.raises(JobError, match="editor: got both start and strength, its name in earlier"):
        load(job, ["editor.start=0.4"])


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        ({"region": "mouth"}, 'editor.region: got "mouth"'),
        ({"faces": 0}, "editor.faces"),
        ({"faces": "some"}, "editor.faces"),
        ({"face_margin": -1}, "editor.face_margin: got -1"),
        ({"no_face": "fail"}, "editor.no_face"),
    ],
)
def test_wrong_regions(editor: dict, message: str) -> None:
    job = {"kind": "edit", "name": "a", "input": "in", "output": "out", "sliders": {"smile": 1.0}}
    with pytest.raises(JobError, match=message):
        job_of({**job, "editor": editor}, "job")
    assert editor_settings({"region": "boxes", "faces": 3}).faces == 3
