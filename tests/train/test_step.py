"""One step: who learns from what, and what chance depends on."""

from pathlib import Path

import pytest
import torch

from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import DiffusionModel
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, check_rows
from bs_ray.train.step import TrainingDiverged, TrainState, train_step
from tests.train.conftest import make_job


@pytest.fixture
def state(model: DiffusionModel, photos: PhotoPool, base: Path) -> TrainState:
    return assemble(make_job(), model, photos, load_features(base, "cpu"), PlainEngine)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(before: list[torch.Tensor], module: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_fresh_slider_is_the_base(state: TrainState) -> None:
    batch = state.batches.at(0, range(4))
    x_t, t, condition = batch.x_t, batch.t, batch.condition
    with torch.no_grad():
        base = state.model.predict(x_t, t, condition)
        assert torch.equal(state.student(x_t, t, batch.lora_scales, condition), base)


def test_a_step_trains_the_slider_and_the_discriminator_only(state: TrainState) -> None:
    base = weights(state.model.denoiser), weights(state.model.vae)
    slider, critic = weights(state.student.module), weights(state.adversary.critic)
    numbers = train_step(state, 0)
    assert same(base[0], state.model.denoiser) and same(base[1], state.model.vae)
    assert not same(slider, state.student.module)
    assert not same(critic, state.adversary.critic)
    assert set(numbers) == {
        *("triplet", "perceptual", "adversarial", "discriminator", "accuracy"),
        *("w_triplet", "w_perceptual"),
    }


def test_each_network_steps_on_its_own_loss(state: TrainState) -> None:
    """The slider's loss leaves no gradient in the discriminator, nor the other way round."""
    seen: dict[str, tuple[bool, bool]] = {}

    def spy(name: str, engine: PlainEngine) -> None:
        step = engine.step

        def watched() -> None:
            seen[name] = tuple(
                any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
                for network in (state.student.module, state.adversary.critic)
            )
            step()

        engine.step = watched

    spy("slider", state.student)
    spy("discriminator", state.adversary.engine)
    train_step(state, 0)
    assert seen == {"slider": (True, False), "discriminator": (False, True)}


def test_a_loss_that_is_not_finite_reaches_no_weight(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((6, 4, 16, 16), torch.nan)
    monkeypatch.setattr(state.photos, "latents", lambda numbers: broken[list(numbers)])
    slider = weights(state.student.module)
    with pytest.raises(TrainingDiverged, match=r"step 3: got a triplet loss of nan.*Lower lr"):
        train_step(state, 3)
    assert same(slider, state.student.module)


@pytest.mark.parametrize("reference", ["real", "frozen", "target"])
def test_ingredients_can_be_switched_off(
    model: DiffusionModel, photos: PhotoPool, base: Path, reference: str
) -> None:
    changes = {"adversarial": 0, "perceptual_reference": reference}
    job = make_job(losses=changes)
    state = assemble(job, model, photos, load_features(base, "cpu"), PlainEngine)
    numbers = train_step(state, 0)
    assert state.adversary is None and "adversarial" not in numbers
    # Nothing has moved yet: against the frozen base's own picture there is nothing to lose.
    assert (numbers["perceptual"] > 1e-4) == (reference != "frozen")
    plain = assemble(make_job(losses=changes | {"perceptual": 0}), model, photos, None, PlainEngine)
    assert "perceptual" not in train_step(plain, 0)


def test_image_losses_need_two_rows_a_worker() -> None:
    job = make_job(batch_size=4, workers=4)
    with pytest.raises(ValueError, match="got 1 for each of 4 workers; expected 2 or more"):
        check_rows(job, 4)
    check_rows(make_job(batch_size=4, losses={"perceptual": 0, "adversarial": 0}), 4)
