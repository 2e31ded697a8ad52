"""Words in job files: how they are spelt, what they are called, what is refused."""

import pytest
from pydantic import ValidationError

from bs_ray.config import EditJob, JobError, Words, words_at_strength

JOB = {"name": "a", "input": "in", "output": "out"}


def test_what_words_have_in_common_is_their_target() -> None:
    words = Words(positive="a photo of a person, smiling, old", negative="a photo of a person, old")
    assert words.prompts.target == "a photo of a person, old" and words.label == "smiling"
    assert Words(positive="smiling", negative="").prompts.target == ""
    assert Words(positive="smiling", negative="", target="x").prompts.target == "x"
    assert Words(positive="行复一行", negative="").label == "words"


def test_words_beside_trained_sliders_in_a_grid() -> None:
    smiling = {"positive": "person, smiling", "negative": "person", "strength": [1, 2]}
    job = EditJob.model_validate(JOB | {"sliders": {"age": 0.5, "smiling": smiling}})
    assert job.strengths == {"age": 0.5, "smiling": [1.0, 2.0]} and list(job.words) == ["smiling"]
    assert job.edits({"age": "age@3", "smiling": "smiling@w1"}) == {
        "smiling+1": {"age@3": 0.5, "smiling@w1": 1.0},
        "smiling+2": {"age@3": 0.5, "smiling@w1": 2.0},
    }


@pytest.mark.parametrize(
    ("sliders", "message"),
    [
        ({"a": {"positive": "b, c", "negative": "b,  c", "strength": 1}}, "got 'b, c' for both"),
        ({"a": {"positive": "b", "negative": "c"}}, "strength"),
        ({"A b": {"positive": "b", "negative": "c", "strength": 1}}, "got name 'A b'"),
        ({"a": {"positive": "b", "negative": "c", "strength": []}}, "got no strength for a"),
        ({"a": {"positive": "", "negative": "c", "strength": 1}}, "positive"),
    ],
)
def test_words_that_are_refused(sliders: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EditJob.model_validate(JOB | {"sliders": sliders})


def test_words_of_the_shell() -> None:
    with pytest.raises(JobError, match="got 'a' for both positive and negative"):
        words_at_strength({"positive": "a", "negative": "a", "strength": 1})
