"""Words are measured as trained sliders are: a unit by construction, a range by judges."""

from pathlib import Path

import pytest

from bs_ray.config import Words
from bs_ray.editing.measure_words import measured
from bs_ray.judges.load import Panel, find_judges
from bs_ray.models import load_base
from bs_ray.sliders.slider import Slider


def test_a_unit_is_what_training_aims_at_and_judges_say_where_it_ends(random_base: Path) -> None:
    model = load_base(str(random_base))
    words = Words(positive="person, smiling", negative="person, frowning")
    slider = Slider.of_words(words, "random", model.base_id, "smiling")
    assert measured(slider, model, Panel()) is slider
    found = measured(slider, model, find_judges(random_base)).card.calibration
    assert found and found.unit == pytest.approx(1.0)
    assert [found.lora_scale(s) for s in (-1.5, 0.0, 1.0)] == pytest.approx([-1.5, 0.0, 1.0])
    assert found.max_scale == 4.0 and len(found.identity) == 9
    assert found.drift[0] > found.drift[3] > 0 == found.drift[4]
