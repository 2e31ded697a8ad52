"""The paper's equations, by hand."""

import math
from pathlib import Path

import pytest
import torch

from bs_ray.config import Losses
from bs_ray.models.base import BaseNotFound
from bs_ray.train.discriminator import Discriminator
from bs_ray.train.features import VGG16_FILE, load_features
from bs_ray.train.losses import (
    LossNormaliser,
    adversarial_loss,
    discriminator_loss,
    guidance_target,
    margin_loss,
    perceptual_loss,
    r1_penalty,
    triplet_loss,
    weights_at,
)


def filled(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 2, 3, 3).clone()


def test_guidance_target_eq_5_6_11() -> None:
    neutral, direction = filled(1, 1, 1), filled(0.5, 0.5, 0.5)
    target = guidance_target(neutral, direction, torch.tensor([0.0, 1.0, -2.0]), eta=4.0)
    # 1 + s * 4 * (3 - 2.5)
    assert torch.equal(target, filled(1.0, 3.0, -3.0))


def test_triplet_loss_is_a_mean_square_per_row() -> None:
    assert triplet_loss(filled(1.0, 4.0), filled(1.5, 2.0)).tolist() == [0.25, 4.0]


def test_margin_loss_attracts_to_the_target_and_repels_from_its_mirror() -> None:
    neutral, target = filled(1.0, 1.0, 1.0), filled(2.0, 2.0, 2.0)  # mirror image: 0
    prediction = filled(1.0, 2.0, 0.0)
    loss = margin_loss(prediction, target, neutral, margin=1.0)
    # d(T, T') = 4: relu(4 + 1 - 1), relu(4 + 0 - 4), relu(4 + 4 - 0)
    assert loss.tolist() == [4.0, 0.0, 8.0]
    assert margin_loss(filled(2.0), filled(2.0), filled(1.0), margin=0.5).tolist() == [0.0]


def test_perceptual_loss_eq_7() -> None:
    def two_levels(images: torch.Tensor) -> list[torch.Tensor]:
        return [images, images[:, :1] * 2]

    loss = perceptual_loss(two_levels, filled(1.0, 0.0), filled(0.5, 0.0))
    # level one: 2 channels x 0.25; level two: 1 channel x 1
    assert loss.tolist() == [1.5, 0.0]


def test_hinge_losses() -> None:
    real, fake = torch.tensor([[[[2.0, 0.5]]]]), torch.tensor([[[[-3.0, 1.0]]]])
    assert adversarial_loss(fake).tolist() == [1.0]
    # real: (0 + 0.5) / 2; fake: (0 + 2) / 2
    assert discriminator_loss(real, fake).tolist() == [1.25]


def test_r1_of_a_linear_critic_is_half_its_squared_weight() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = (3.0 * images).sum((1, 2, 3), keepdim=True)
    assert torch.allclose(r1_penalty(logits, images), torch.full((2,), 9 * 48 / 2))


def test_schedule_eq_9_10() -> None:
    paper = Losses(perceptual_floor=0, schedule_start=0.4, schedule_rate=10, adversarial=0.1)
    start, middle, end = (weights_at(step, 100, paper) for step in (0, 40, 100))
    assert start.triplet == pytest.approx(1 / (1 + math.exp(4)))
    assert middle.triplet == middle.perceptual == 0.5
    assert end.triplet == pytest.approx(1 / (1 + math.exp(-6)))
    for weights in (start, middle, end):
        assert weights.triplet + weights.perceptual == pytest.approx(1)
    assert start.adversarial == 0 and weights_at(30, 100, paper).adversarial == 0.1


def test_floor_keeps_the_perceptual_loss_awake() -> None:
    late = weights_at(10**6, 10**6, Losses(perceptual_floor=0.2, schedule_rate=100))
    assert late.perceptual == pytest.approx(0.2)
    assert weights_at(0, 10, Losses(perceptual=0)).perceptual == 0


def test_scales_are_running_means_that_settle() -> None:
    scales = LossNormaliser()
    scales.update({"triplet": 1.0, "perceptual": 4.0})
    scales.update({"triplet": 3.0, "perceptual": 0.0})
    assert scales["triplet"] == 2.0 and scales["perceptual"] == 2.0 and not scales.settled
    restored = LossNormaliser()
    restored.load(scales.state())
    assert restored["triplet"] == 2.0
    for _ in range(LossNormaliser.SETTLE_STEPS):
        restored.update({"triplet": 1.0})
    assert restored.settled


@pytest.mark.parametrize(("image_px", "grid"), [(64, 8), (128, 8), (512, 16), (100, 12)])
def test_discriminator_sees_patches_at_any_size(image_px: int, grid: int) -> None:
    images = torch.randn(1, 3, image_px, image_px)
    network = Discriminator(3, image_px, r1=0.5, seed=0)
    assert network.score(images).shape == (1, 1, grid, grid)
    assert network(images, images).shape == (1,)
    assert torch.equal(network.score(images), Discriminator(3, image_px, 0.5, 0).score(images))


def test_discriminator_loss_reaches_no_picture() -> None:
    real, fake = (torch.randn(2, 3, 64, 64, requires_grad=True) for _ in range(2))
    Discriminator(3, 64, r1=0.5, seed=0)(real, fake).sum().backward()
    assert real.grad is None and fake.grad is None


def test_vgg16_is_used_where_its_weights_lie(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BaseNotFound, match=r"expected the weights of VGG16.*losses.perceptual=0"):
        load_features(tmp_path, "cpu")
    from torchvision.models import vgg16

    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    whole = vgg16(init_weights=False)
    torch.save(whole.state_dict(), tmp_path / "checkpoints" / VGG16_FILE)
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    maps = load_features(tmp_path, "cpu")(images)
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512]
    assert [m.shape[-1] for m in maps] == [64, 32, 16, 8]
    mean, std = (
        torch.tensor(c).view(3, 1, 1) for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    theirs = whole.features[:23]((images.detach() / 2 + 0.5 - mean) / std)
    assert torch.allclose(maps[-1], torch.nn.functional.normalize(theirs, eps=1e-6), atol=1e-6)
    maps[-1].sum().backward()
    assert images.grad is not None
