"""The losses as functions of tensors, their weights over a run, and what they are divided by.

Legend: B rows; predictions and targets [B, C, h, w]; images [B, 3, H, W] about [-1, 1]; a loss is
float32 [B], one number for each row, so that its mean does not depend on which worker has a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.config import Losses
from bs_ray.judges.perceptual import feature_distance

Features = Callable[[Tensor], list[Tensor]]
"""images [B, 3, H, W] -> feature maps [B, c, h, w], of unit length over the channels."""


def guidance_target(neutral: Tensor, direction: Tensor, strength: Tensor, eta: float) -> Tensor:
    """What the slider at `strength` [B] should predict: [B, C, h, w].

    direction: e(x_t, c+) - e(x_t, c-), like neutral.
    """
    # Eq 5, 6, 11: T(s) = e(x_t, c_n) + s * eta * (e(x_t, c+) - e(x_t, c-)). One rule for both
    # polarities: the paper writes two, whose signs disagree.
    return neutral + strength.view(-1, 1, 1, 1) * eta * direction


def triplet_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Eq 5, 6: mean squared distance to the guided target, per row."""
    return ((prediction - target) ** 2).mean((1, 2, 3))


def margin_loss(prediction: Tensor, target: Tensor, neutral: Tensor, margin: float) -> Tensor:
    """Eq 5, 6 read as a triplet loss with a margin (Schroff et al. 2015), per row.

    relu(m + d(e_s, T(s)) - d(e_s, T(-s))): the target attracts and its mirror image about the
    neutral prediction repels. m is `margin` x d(T(s), T(-s)).
    """
    opposite = 2 * neutral - target
    room = margin * triplet_loss(target, opposite)
    return F.relu(room + triplet_loss(prediction, target) - triplet_loss(prediction, opposite))


def perceptual_loss(features: Features, images: Tensor, references: Tensor) -> Tensor:
    """Eq 7: squared distance of feature maps, summed over channels and levels, per row."""
    return feature_distance(features(images), features(references))


def adversarial_loss(logits: Tensor) -> Tensor:
    """The slider's side of the hinge: minus the realism of its pictures, per row.

    logits: [B, 1, h, w], one per patch, high for real.
    """
    return -logits.mean((1, 2, 3))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's side: push real patches above 1 and fake ones below -1, per pair."""
    return (F.relu(1 - real_logits) + F.relu(1 + fake_logits)).mean((1, 2, 3))


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared gradient of an image's realism, per row (Mescheder et al. 2018).

    `logits` must have been computed from `images`, which must require gradients.
    """
    realism = logits.mean((1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(realism, images, create_graph=True)
    return gradient.square().sum((1, 2, 3)) / 2


@dataclass(frozen=True)
class Weights:
    """The weights at one step, Eq 8: L = l_tri L_triplet + l_perp L_perp + l_adv L_adv."""

    triplet: float
    perceptual: float
    adversarial: float
    adversarial_share: float = 0.0


def weights_at(step: int, steps: int, losses: Losses) -> Weights:
    """The weights of a step: perceptual first, guidance later, the adversary from some step on."""
    # Eq 9: lambda_triplet(t) = 1 / (1 + exp(-k (t - t0))), t the training step,
    # k = schedule_rate / steps and t0 = schedule_start * steps.
    late = 1 / (1 + math.exp(-losses.schedule_rate * (step / steps - losses.schedule_start)))
    # Eq 10: lambda_perp(t) = 1 - lambda_triplet(t). It ends at 0, where nothing would protect the
    # picture any more, hence the floor (0 is the paper).
    early = losses.perceptual_floor + (1 - losses.perceptual_floor) * (1 - late)
    started = step >= losses.adversarial_after * steps
    return Weights(
        triplet=losses.triplet * late,
        perceptual=losses.perceptual * early,
        adversarial=losses.adversarial if started else 0.0,
        adversarial_share=losses.adversarial_share if started else 0.0,
    )


class LossNormaliser:
    """Divides the losses by their norms, so that the weights of Eq 8 compare like with like.

    A norm is not the loss's own running mean, which vanishes where a loss does: dividing by that
    would blow up what is left of it. The norm of the triplet loss is the loss of a slider that does
    nothing. So is that of the perceptual loss against the target; against another reference it is
    the loss of a slider that hits its target. The hinge loss needs no norm, since its margin is 1.
    Norms are means over the first SETTLE_STEPS steps, and fixed from then on.
    """

    SETTLE_STEPS = 32
    NAMES = ("triplet", "perceptual")

    def __init__(self) -> None:
        self._steps = 0
        self._sums = dict.fromkeys(self.NAMES, 0.0)

    @property
    def settled(self) -> bool:
        return self._steps >= self.SETTLE_STEPS

    def update(self, norms: dict[str, float]) -> None:
        """Take in one step's yardsticks, means over all workers' rows."""
        self._steps += 1
        for name, value in norms.items():
            self._sums[name] += value

    def __getitem__(self, name: str) -> float:
        return max(self._sums[name] / max(self._steps, 1), 1e-8)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"steps": self._steps, **self._sums}

    def load(self, state: dict[str, float]) -> None:
        """Continue from `state()`."""
        self._steps = int(state["steps"])
        self._sums = {name: float(state[name]) for name in self.NAMES}
