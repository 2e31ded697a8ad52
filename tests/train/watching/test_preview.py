"""Previews on the plumbing base, the numbers by hand, and the plateau."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bs_ray.config import EarlyStop, Prompts
from bs_ray.images.faces import Face
from bs_ray.judges.judge import Card, Subject
from bs_ray.judges.load import Panel, find_judges
from bs_ray.models import base_folder
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train.watching.calibrate import calibrate
from bs_ray.train.watching.preview import (
    Plateau,
    Preview,
    Previewer,
    missing_judges_message,
    reach,
    strip,
)
from tests.train.conftest import PROMPTS

SMILE = Prompts.model_validate(PROMPTS)
AGE = Prompts.model_validate(
    PROMPTS | {"positive": "a photo of a person, old", "negative": "a photo of a person, young"}
)


def bank_of(model: DiffusionModel, names: list[str]) -> SliderBank:
    """Sliders that do something: B is noise."""
    bank = SliderBank.trainable(names, model.denoiser, model.slider_targets(), 2, 2.0, 0)
    generator = torch.Generator().manual_seed(1)
    for up in bank.up.values():
        up.data = 0.5 * torch.randn(up.shape, generator=generator)
    bank.attach(model.denoiser)
    return bank


def previewer(model: DiffusionModel, concepts: dict[str, Prompts], **more) -> Previewer:
    targets = [prompts.target for prompts in concepts.values()]
    settings = {"seeds": (1, 2), "steps": 3} | more
    return Previewer(model, list(concepts), targets, concepts, eta=2.0, **settings)


def same(one: Preview, other: Preview) -> bool:
    return one.numbers == other.numbers and one.picture.tobytes() == other.picture.tobytes()


def test_a_preview_depends_on_weights_and_seeds_alone(model) -> None:
    bank = bank_of(model, ["smile"])
    make, predict = previewer(model, {"smile": SMILE}), partial(bank.predict, model)
    before = torch.get_rng_state()
    first = make(10, predict)["smile"]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in bank.parameters())
    torch.rand(3)
    assert same(previewer(model, {"smile": SMILE})(10, predict)["smile"], first)
    assert set(first.numbers) == {"reach_up", "reach_down", "leak"} and first.numbers["leak"] > 0
    next(iter(bank.up.values())).data += 0.5
    assert not same(make(10, predict)["smile"], first)


def test_strength_0_is_the_base_and_the_others_are_not(model) -> None:
    predict = partial(bank_of(model, ["smile"]).predict, model)
    make = previewer(model, {"smile": SMILE})
    generated = make.pictures(predict, [-1.0, 0.0, 1.0])
    assert generated.shape == (1, 2, 3, 3, 64, 64)
    base = make.pictures(lambda x_t, t, condition, _: model.predict(x_t, t, condition), [0.0])
    assert torch.allclose(generated[:, :, 1], base[:, :, 0], atol=1e-4)
    assert not torch.allclose(generated[:, :, 0], generated[:, :, 2], atol=1e-3)


def test_several_sliders_in_passes_of_a_few_rows(model) -> None:
    predict = partial(bank_of(model, ["smile", "age"]).predict, model)
    sizes = []

    def counting(x_t, t, condition, strengths):
        sizes.append(len(x_t))
        return predict(x_t, t, condition, strengths)

    concepts = {"smile": SMILE, "age": AGE}
    whole = previewer(model, concepts)(1, predict)
    state = previewer(model, concepts, rows=8)(1, counting)
    assert max(sizes) <= 8 and list(state) == ["smile", "age"]
    for name in concepts:
        assert state[name].numbers == pytest.approx(whole[name].numbers, rel=1e-3, abs=1e-4)


def test_a_slider_that_does_as_its_prompts_say_reaches_1(model) -> None:
    make = previewer(model, {"smile": SMILE})
    held = make.held_out

    def obedient(x_t, t, condition, scales):
        plain = model.predict(x_t, t, condition)
        copies = len(x_t) // len(held.x_t)
        if len(x_t) % len(held.x_t) or not torch.equal(x_t[: len(held.x_t)], held.x_t):
            return plain  # the pictures
        return plain + scales[:, :, None, None] * held.direction.repeat(copies, 1, 1, 1)

    numbers = make(1, obedient)["smile"].numbers
    assert numbers == pytest.approx({"reach_up": 1, "reach_down": 1, "leak": 0}, abs=1e-3)
    assert make(1, obedient)["smile"].effect == pytest.approx(1, abs=1e-3)


def test_reach_and_leak_by_hand() -> None:
    direction = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    share, beside = reach(torch.tensor([[1.0, 1.0], [3.0, -2.0]]), direction)
    assert share.tolist() == [0.5, -2.0] and beside.tolist() == [0.5, 3.0]


def test_pairs_have_no_teacher_and_tell_the_change(model) -> None:
    predict = partial(bank_of(model, ["smile"]).predict, model)
    make = Previewer(model, ["smile"], ["a face"], seeds=(1,), steps=2)
    found = make(1, predict)["smile"]
    assert set(found.numbers) == {"change"} and found.effect > 0
    assert calibrate(make, predict) == {}


def test_judges_are_used_where_they_are(model, tmp_path: Path) -> None:
    none = find_judges(tmp_path)
    assert (missing_judges_message(none) or "").startswith(
        "previews: no judge own-identity, own-perceptual, own-clip; "
    )
    judges = find_judges(base_folder("tiny"))
    assert judges.absent == {} and missing_judges_message(judges) is None
    predict = partial(bank_of(model, ["smile"]).predict, model)
    numbers = previewer(model, {"smile": SMILE}, judges=judges)(1, predict)["smile"].numbers
    assert numbers["drift"] > 0 and -1 <= numbers["identity"] <= 1 and "clip" in numbers


class Brightness:
    """A judge of faces by hand: how much brighter; it sees faces in pictures that are no black."""

    card = Card("brightness", "1", "MIT", "difference of brightness")
    needs_face = True

    def distances(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        away = [abs(p.mean() - subject.photo.mean()) / 255 for p in pictures]
        return np.array(away) if subject.face else np.full(len(away), np.nan)


class Detector:
    """Finds a face in so many pictures, and none in the others."""

    def __init__(self, left: int):
        self.left = left

    def find(self, pixels: np.ndarray) -> list[Face]:
        self.left -= 1
        return [Face((0, 0, 9, 9))] if self.left >= 0 else []


@pytest.mark.parametrize("faces", [1, 0])
@pytest.mark.filterwarnings("ignore:slider smile. got no effect")
def test_only_pictures_with_a_face_count_for_judges_of_faces(model, faces: int) -> None:
    panel = Panel(identity=(Brightness(),), perceptual=find_judges(base_folder("tiny")).perceptual)  # type: ignore[arg-type]
    predict = partial(bank_of(model, ["smile"]).predict, model)

    def make() -> Previewer:
        return previewer(model, {"smile": SMILE}, judges=panel, detector=Detector(faces))

    numbers = make()(1, predict)["smile"].numbers
    assert ("identity" in numbers) == (faces > 0) and numbers["drift"] > 0
    found = calibrate(make(), predict)["smile"]
    assert len(found.identity) == (9 if faces else 0)
    assert ("brightness 1" in found.judges) == (faces > 0)
    if faces:
        assert found.identity[4] == 1 and 0 < 1 - numbers["identity"] < 1


@pytest.mark.parametrize("kinds", [["perceptual", "identity"], ["identity"], []])
@pytest.mark.filterwarnings("ignore:slider smile. got no effect")
def test_a_slider_is_calibrated_with_the_judges_there_are(model, kinds: list[str]) -> None:
    all_judges = find_judges(base_folder("tiny"))
    judges = Panel(**{kind: getattr(all_judges, kind) for kind in kinds})
    predict = partial(bank_of(model, ["smile"]).predict, model)
    found = calibrate(previewer(model, {"smile": SMILE}, judges=judges), predict)["smile"]
    assert found.strengths == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert found.effect[4] == 0 and found.drift[4] == pytest.approx(0, abs=1e-6)
    assert found.judge.startswith("share of the target's change")
    assert bool(found.identity) == ("identity" in kinds) and found.low <= 0 <= found.high
    assert [name.split(" ")[0] for name in found.judges] == [f"own-{kind}" for kind in kinds]


def test_the_strip_has_a_cell_for_each_seed_and_strength() -> None:
    pictures = torch.full((2, 3, 3, 64, 64), -1.0)
    pictures[1, 2, 0] = 1.0  # red
    short = strip(pictures, [-1.0, 0.0, 1.0], [7, 8], "smile  step 3")
    pixels = np.asarray(short)
    margin = short.width - 3 * 132
    assert short.mode == "RGB" and 16 < margin < 40 and short.height == 44 + 2 * 132
    assert pixels[44 + 132 + 60, margin + 2 * 132 + 60].tolist() == [255, 0, 0]
    assert pixels[44 + 60, margin + 60].tolist() == [0, 0, 0]
    long = strip(pictures, [-1.0, 0.0, 1.0], [7, 8], "  ".join(["reach_up 0.71"] * 9))
    assert long.width == short.width and long.height > short.height


# --- early stop ----------------------------------------------------------------------------------
def test_a_plateau_stops_and_resumes_exactly() -> None:
    effects = [0.1, 0.5, 0.6, 0.605, 0.7, 0.705, 0.69, 0.71]
    whole = Plateau(EarlyStop(patience=3, min_gain=0.02))
    direction = [whole.update(effect) for effect in effects]
    assert direction == [False] * 7 + [True]
    for cut in range(len(effects)):
        first, second = Plateau(whole.settings), Plateau(whole.settings)
        start = [first.update(effect) for effect in effects[:cut]]
        second.load(first.state())
        assert start + [second.update(effect) for effect in effects[cut:]] == direction


def test_a_slider_that_never_starts_is_a_plateau() -> None:
    plateau = Plateau(EarlyStop(patience=2))
    assert [plateau.update(0.0) for _ in range(3)] == [False, False, True]
