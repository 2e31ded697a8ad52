"""Every method against what can be worked out by hand, in a world of Gaussians.

Base: x0 ~ N(0, 1); a slider at strength g: x0 ~ N(g, 1). There the best predictions are known, and
both inversion and displacement from timestep t move a photo by g (1 - a / sqrt(a^2 + b^2)).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods import METHODS
from bs_ray.editing.run import EditRun, run_alone
from bs_ray.models import load_base
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import EpsPrediction, FlowMatching, Prediction, VPrediction
from bs_ray.tiny.faces import render, sample_scenes

SHAPE = (4, 8, 8)
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
KINDS = {
    "eps": EpsPrediction(ALPHAS),
    "v": VPrediction(ALPHAS),
    "flow": FlowMatching(),
    "shifted flow": FlowMatching(shift=3.0),
}
MANY = 400


def world(kind: Prediction, lora_scales: list[list[float]], source_of: list[int]) -> EditContext:
    """Two photos; the slider's column i moves the mean of half the latents, that of channel i."""

    def predict(x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor) -> Tensor:
        a, b = kind.coefficients(t)
        mean = torch.zeros_like(x_t)
        mean[:, : lora_scales.shape[1]] = lora_scales[:, :, None, None]
        away = (x_t - a * mean) / (a**2 + b**2)
        return kind.truth(mean + a * away, b * away, t)

    generator = torch.Generator().manual_seed(0)
    cond = Condition(torch.zeros(2, 1, 4))
    return EditContext(
        predict=predict,
        prediction=kind,
        x0=torch.randn(2, *SHAPE, generator=generator),
        condition=cond,
        empty=cond,
        lora_scales=torch.tensor(lora_scales),
        source_of=torch.tensor(source_of),
        seeds=[0, 0],
        keys=["a", "b"],
    )


def moved(method: str, context: EditContext, **settings) -> Tensor:
    steps = METHODS[method](context, EditorSettings(method=method, **settings))
    found = run_alone(EditRun(steps), context.predict)
    return found - context.x0[context.source_of]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("method", ["displacement", "ddim_inversion"])
def test_a_photo_moves_as_the_theory_says(kind: Prediction, method: str) -> None:
    context = world(kind, [[0.8, 0.0], [-0.5, 0.3], [0.0, 0.0]], [0, 1, 1])
    found = moved(method, context, steps=MANY, start=0.7)
    a, b = (c.flatten() for c in kind.coefficients(torch.tensor(kind.timesteps(MANY, 0.7)[:1])))
    expected = torch.zeros_like(found)
    expected[:, :2] = context.lora_scales[:, :, None, None] * (1 - a / (a**2 + b**2).sqrt())
    assert float((found - expected).abs().max()) < 0.02
    assert float(found[:, 0].abs().max()) > 0.2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_each_method_does_to_a_photo_that_nothing_should_move(kind: Prediction) -> None:
    context = world(kind, [[0.0], [0.0]], [0, 1])

    def most(method: str, **settings) -> float:
        return float(moved(method, context, start=0.6, **settings).abs().max())

    assert most("displacement", steps=10) == 0
    assert most("edit_friendly", steps=10) < 1e-5
    plain, again = (most("ddim_inversion", steps=10, fixed_point=n) for n in (0, 5))
    assert again < plain / 10 and plain < 1.5
    assert most("sdedit", steps=10) > 0.5


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_edit_friendly_moves_the_right_way(kind: Prediction) -> None:
    found = moved("edit_friendly", world(kind, [[0.8], [-0.8]], [0, 0]), steps=50, start=0.7)
    assert torch.allclose(found[0], -found[1], atol=1e-4)
    assert 0.1 < float(found[0, 0].mean()) < 1.0 and float(found[0, 1:].abs().max()) < 1e-4


def test_several_strengths_share_the_photo_and_its_noise() -> None:
    together = world(KINDS["eps"], [[0.8], [-0.5], [0.3]], [1, 0, 1])
    alone = world(KINDS["eps"], [[0.3]], [1])
    for method in METHODS:
        if method != "null_text":
            one, three = (moved(method, w, steps=5, start=0.6) for w in (alone, together))
            assert torch.allclose(three[2], one[0], atol=1e-5), method


def test_a_soft_mask_keeps_the_edit_where_the_slider_acts() -> None:
    context = world(KINDS["eps"], [[0.8]], [0])
    half = torch.zeros(1, 1, 8, 8)
    half[..., :3] = 1.0
    whole = context.predict

    def local(x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor) -> Tensor:
        """The slider acts on the left, and a little everywhere."""
        off = whole(x_t, t, condition, torch.zeros_like(lora_scales))
        return off + (whole(x_t, t, condition, lora_scales) - off) * (half + 0.05)

    context = replace(context, predict=local)
    plain, masked = (moved("displacement", context, soft_mask=degree) for degree in (0.0, 1.0))
    left, right = slice(0, 2), slice(5, 8)
    assert torch.allclose(masked[..., left], plain[..., left], rtol=0.05)
    assert float(masked[..., right].abs().max()) < 0.2 * float(plain[..., right].abs().max())


def test_null_text_gives_the_photo_back_under_guidance() -> None:
    """Guided DDIM leaves the photo; the fitted empty prompt brings it back."""
    model = load_base("tiny")
    cond, empty = model.embed(["a photo of a person"]), model.embed([""])

    def predict(x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor) -> Tensor:
        return model.predict(x_t, t, condition)

    with torch.no_grad():
        x0 = model.encode(render(sample_scenes(1, 2_000_000)))
    context = EditContext(
        predict=predict,
        prediction=model.prediction,
        x0=x0,
        condition=cond,
        empty=empty,
        lora_scales=torch.zeros(1, 1),
        source_of=torch.tensor([0]),
        seeds=[0],
        keys=["a"],
    )
    with pytest.MonkeyPatch.context() as patch:
        fitted = float(moved("null_text", context, steps=8).square().mean())
        patch.setattr("bs_ray.editing.methods.inversion._INNER_STEPS", 0)
        left = float(moved("null_text", context, steps=8).square().mean())
    print(f"squared error {left:.4f} without the fit, {fitted:.4f} with it")
    assert fitted < left / 3
