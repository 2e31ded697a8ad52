"""What a base does not read of a long prompt is found, and said."""

import pytest

from bs_ray.models import load_base
from bs_ray.models.prompts import cut_notes, unread

KNOWN = "a photo of a smiling person"


def long_prompt(words: int) -> str:
    return " ".join((KNOWN.split() * words)[:words])


@pytest.mark.parametrize("base", ["tiny", "tiny-flow"])
def test_the_unread_end_is_named(base: str) -> None:
    model = load_base(base, device="meta")
    [*_, (tokenizer, limit)] = model.readers()
    fits = long_prompt(limit)
    assert len(tokenizer(fits).input_ids) == limit + 2 == tokenizer.model_max_length
    assert cut_notes(model, [KNOWN, fits]) == []
    [note] = cut_notes(model, [f"{fits} and at night", KNOWN])
    assert note.startswith("prompt too long: ") and note.endswith("and not 'and at night'")
    # What the base makes of the prompt tells: the end does nothing.
    ids = tokenizer(f"{fits} and at night", truncation=True, max_length=limit + 2).input_ids
    assert ids == tokenizer(fits).input_ids


def test_the_encoder_that_reads_most_counts() -> None:
    [*_, (tokenizer, _)] = load_base("tiny", device="meta").readers()
    assert unread("a photo of a person", [(tokenizer, 2), (tokenizer, 4)]) == "person"
    assert unread("a photo of a person", [(tokenizer, 2), (tokenizer, 5)]) == ""
    assert unread("", [(tokenizer, 2)]) == ""
