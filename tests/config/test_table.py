"""A table's job: what it asks of training and of evaluate, and what is wrong with one."""

from pathlib import Path

import pytest

from bs_ray.config import JobError, TableJob, TrainJob, job_hash, load

JOBS = Path(__file__).parents[2] / "jobs"
PAIRS = [
    (f"{folder}/table1{end}.yaml", f"{folder}/table2{end}.yaml")
    for folder, end in (("tiny", ""), ("tiny-photo", ""), ("train", "-sdxl"))
]


def table(name: str, *overrides: str) -> TableJob:
    job = load(JOBS / name, list(overrides), "evaluate")
    assert isinstance(job, TableJob)
    return job


def test_methods_train_and_are_measured_as_the_table_says() -> None:
    job = table("tiny/table1.yaml")
    ours, reference = job.training("age", "ours"), job.training("age", "concept_sliders")
    assert isinstance(ours, TrainJob) and isinstance(reference, TrainJob)
    assert job.training("age", "instant") is None
    assert (ours.steps, ours.batch_size, ours.name) == (80, 8, "age-ours")
    assert ours.losses.eta == reference.losses.eta == job.words("age").eta == 3
    assert ours.losses.soft_mask == 1 and reference.losses.soft_mask == 0
    assert ours.prompts == reference.prompts == job.prompts("age")
    asked = job.evaluation("age", ["ours", "instant"], {"ours": "age-ours@3"})
    assert set(asked.splits) == {"text", "wild"} and not asked.editor.calibrated
    assert asked.compare["ours"].slider == "age-ours@3"
    assert asked.compare["instant"].slider == job.words("age")
    assert asked.moves == {"age-ours": "age", "age-instant": "age"}


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[0])
def test_both_tables_share_the_slider_of_the_default(names: tuple[str, str]) -> None:
    one, two = (table(name).training("age", "ours") for name in names)
    assert one and two and job_hash(one) == job_hash(two)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rows.x={slider: grin, split: wild}", "got rows.x.slider 'grin'; expected one of hair"),
        ("rows.x={slider: age, split: mine}", "got rows.x.split 'mine'; expected one of text, w"),
        ("rows.x={slider: age, split: wild, paper: {theirs: {}}}", "got rows.x.paper 'theirs'"),
        ("sliders.x={target: a, positive: b, negative: c}", "got sliders.x, which no row names"),
        ("methods.ours.stesp=3", "methods.ours, as a training job: stesp: Extra inputs"),
        ("strength=1.5", "got strength 1.5; expected one of strengths"),
        ("strengths=[-1, 0, 1, 2]", "got strengths [2.0] without their opposites"),
        ("splits={text: 4, wild: photos/}", "expected a count for faces, wild, text"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(override: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        table("tiny/table1.yaml", override)
    assert message in str(error.value)


def test_a_table_goes_to_evaluate() -> None:
    with pytest.raises(JobError, match="got a table job; expected a train job: try `bs-ray eval"):
        load(JOBS / "tiny/table1.yaml", kind="train")
