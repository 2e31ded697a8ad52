"""A slider on another base than its own: of its family with a note, of another one never."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bs_ray.config import Prompts
from bs_ray.judges.load import Panel
from bs_ray.models import identify_base, load_base
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider
from bs_ray.train.watching.elsewhere import calibrated_on

MEASURED = Calibration(
    judge="j",
    strengths=[-2, -1, 0, 1, 2],
    effect=[-2, -1, 0, 1, 2],
    drift=[0] * 5,
    unit=1.0,
    low=-1,
    high=1,
)
OWN = BaseIdentity("own", "sdxl")
TUNED = BaseIdentity("tuned", "sdxl", layers={"line": [6, 4]})


def made(**about: object) -> Slider:
    card = Card(name="age", version=1, base="sdxl-base", base_id="own", rank=2, **about)  # type: ignore[arg-type]
    return Slider(card, {"line": (torch.ones(2, 4), torch.ones(6, 2))})


def test_on_its_own_base_a_slider_is_itself() -> None:
    slider = made()
    assert slider.on(OWN, "refuse") is slider
    renamed = BaseIdentity("new", "sdxl", former=("own",))
    assert slider.on(renamed, "refuse") is slider
    unknown = Slider(slider.card.model_copy(update={"base_id": ""}), slider.factors)
    assert unknown.on(TUNED, "refuse") is unknown


def test_on_a_fine_tune_every_output_says_so() -> None:
    slider = made(calibration=MEASURED)
    used = slider.on(TUNED)
    note = (
        "age was trained on another base (sdxl-base), and its strengths were not measured on "
        "this one"
    )
    assert Mix.of({"age": 1.0}, {"age": used.card}).notes == (note,)
    [beyond] = Mix.of({"age": 1.5}, {"age": used.card}).notes
    assert beyond == f"{note}; age 1.5 is beyond its usable range, -1 to 1"
    assert Mix.of({"age": 0.0}, {"age": used.card}).notes == ()
    assert used.to_bytes() == slider.to_bytes(), "no file and no hash knows of it"
    assert slider.on(TUNED, "allow") is slider


@pytest.mark.parametrize(
    ("base", "others", "message"),
    [
        (TUNED, "refuse", r"got base tuned; expected own \(sdxl-base\).*other_bases=warn"),
        (BaseIdentity("x", "flux"), "allow", "got a base of the family flux; expected one of sdxl"),
        (BaseIdentity("x", "sdxl", layers={"line": [6, 5]}), "allow", "no layer line of its shape"),
        (BaseIdentity("x", "sdxl", layers={"row": [6, 4]}), "warn", "no layer line of its shape"),
    ],
)
def test_what_cannot_fit_is_refused(base: BaseIdentity, others: str, message: str) -> None:
    with pytest.raises(SliderError, match=message):
        made().on(base, others)  # type: ignore[arg-type]


def test_a_measurement_lies_beside_the_slider(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    published = registry.publish(made(calibration=MEASURED))
    half = MEASURED.model_copy(update={"unit": 0.5, "effect": [-4, -2, 0, 2, 4]})
    place = registry.keep_calibration("age", TUNED, "./tuned", half)
    assert place == f"{tmp_path}/age/0001.on-tuned.json" and Path(place).is_file()

    used = registry.resolve_on("age", TUNED)
    assert used.card.calibration == half
    assert used.card.elsewhere == "age was trained on another base (sdxl-base)"
    assert registry.resolve_on("age@1", TUNED, "allow").card.calibration == half
    assert registry.resolve_on("age", OWN).card.calibration == MEASURED
    other = registry.resolve_on("age", BaseIdentity("other", "sdxl"))
    assert other.card.calibration == MEASURED and "were not measured" in other.card.elsewhere
    assert registry.list() == {"age": [1]} and registry.resolve("age").card == published.card
    by_file = registry.resolve_on(f"{tmp_path}/age/0001.safetensors", TUNED)
    assert by_file.card.calibration == half


@pytest.mark.filterwarnings("ignore:slider age. got no effect")
def test_a_slider_is_measured_on_another_base(random_base: Path) -> None:
    """By its own prompts, on what that base makes of them."""
    torch.set_num_threads(1)
    model = load_base(str(random_base))
    slider = random_slider(model, "age", 0)
    prompts = Prompts(target="person", positive="person, old", negative="person, young")
    card = slider.card.model_copy(update={"prompts": prompts, "base_id": "elsewhere"})
    strong = {layer: (a, 20 * b) for layer, (a, b) in slider.factors.items()}
    found = calibrated_on(Slider(card, strong), model, Panel())
    assert found.strengths == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert max(found.drift) > 0 and re.search("noisy latents", found.judge)
    assert identify_base(str(random_base)).id == model.base_id
    with pytest.raises(SliderError, match="got one without prompts"):
        calibrated_on(Slider(card.model_copy(update={"prompts": None}), strong), model, Panel())
