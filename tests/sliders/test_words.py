"""A slider of words: its name, its file, and what its card says of it."""

import pytest

from bs_ray.config import Prompts, Words
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.exporting import export
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import words_said

SMILE = Words(positive="person, smiling", negative="person, frowning")


def test_prompts_and_eta_name_it() -> None:
    one = Slider.of_words(SMILE, "tiny", "b1").card
    assert one.reference == Slider.of_words(SMILE, "elsewhere", "b2").card.reference
    assert one.reference == "smiling@w" + one.reference[-8:]
    for change in ({"eta": 4.0}, {"target": "a man"}, {"disentangle": ["male", "female"]}):
        other = Slider.of_words(SMILE.model_copy(update=change), "tiny", "b1").card
        assert other.reference != one.reference
    assert words_said([one])[one.reference]["positive"] == "person, smiling"


def test_what_it_pulls_adds_up_to_nothing() -> None:
    held = SMILE.model_copy(update={"disentangle": ["male", "female"], "eta": 1.5})
    pulls = Slider.of_words(held, "tiny", "b1").card.pulls
    assert pulls == {
        "male person, smiling": 1.5,
        "female person, smiling": 1.5,
        "male person, frowning": -1.5,
        "female person, frowning": -1.5,
    }
    erasing = Card(
        name="a",
        base="tiny",
        base_id="b1",
        rank=0,
        eta=2.0,
        prompts=Prompts(target="p", positive="x", negative="y", action="erase"),
    )
    assert erasing.pulls == {"x": -2.0, "y": 2.0}


def test_it_is_published_like_any_slider(tmp_path) -> None:
    registry = Registry(str(tmp_path))
    published = registry.publish(Slider.of_words(SMILE, "tiny", "b1", "smiling"))
    assert published.reference == "smiling@1"
    again = registry.resolve("smiling")
    assert again == published and again.factors == {} and again.card.eta == 3.0
    assert again.card.pulls == {"person, smiling": 3.0, "person, frowning": -3.0}
    with pytest.raises(SliderError, match="got words, which have no weights to export"):
        export(again, "kohya")


def test_files_of_trained_sliders_say_nothing_of_eta() -> None:
    card = Card(name="a", base="tiny", base_id="b1", rank=4)
    assert '"eta"' not in card.to_json() and card.pulls == {}
