"""The adversary at work: what it is shown as real and as fake, and its own steps (III-C).

Legend: N near rows of this worker; latents [N, C, h, w]; pictures [N, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bs_ray.config import EditorSettings, TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods import METHODS
from bs_ray.editing.run import EditRun
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import keyed_generator
from bs_ray.sliders.bank import SliderBank
from bs_ray.train.batches import TrainBatch
from bs_ray.train.discriminator import Critic
from bs_ray.train.engines import Engine, mean_over_workers, over_workers
from bs_ray.train.losses import adversarial_loss

EDIT = EditorSettings(steps=4)
"""How a fake of the kind "edit" is made."""


class Adversary:
    """A discriminator, and the slider's latest fakes with what was real beside them."""

    def __init__(
        self,
        engine: Engine,
        job: TrainJob,
        model: DiffusionModel,
        photos: PhotoPool,
        rank: int = 0,
        workers: int = 1,
    ):
        self.engine, self.job, self.model, self.photos = engine, job, model, photos
        self.rank, self.workers = rank, workers
        self.replay: dict[str, Tensor] = {}
        """`real` and `fake` latents, the newest last; empty without replay."""

    @property
    def critic(self) -> Critic:
        """The bare network."""
        critic = self.engine.module
        assert isinstance(critic, Critic)
        return critic

    def loss(self, seen: Tensor) -> Tensor:
        """The slider's loss against the frozen discriminator, per row: [N]."""
        # Through `module`: through the engine, DeepSpeed would take the discriminator's part of
        # this backward pass for its own step.
        return adversarial_loss(self.critic.requires_grad_(False).score(seen))

    def real(self, batch: TrainBatch, target_x0: Callable[[], Tensor]) -> Tensor:
        """Latents that count as real."""
        if self.job.losses.adversarial_real == "target":
            return target_x0()
        return self.photos.latents(batch.photos)

    def pairs(
        self, real: Tensor, fake: Tensor, seen: Tensor, step: int
    ) -> list[tuple[Tensor, Tensor]]:
        """(real, fake) as the discriminator looks at them, for each of its steps.

        seen: the fake latents as it looks at them, which the slider's loss has made already.
        """
        losses = self.job.losses
        found = [(self._seen(real), seen)] * losses.discriminator_steps
        if not losses.discriminator_replay:
            return found
        kept = losses.discriminator_replay // self.workers
        for name, new in (("real", real), ("fake", fake)):
            before = [self.replay[name]] if name in self.replay else []
            self.replay[name] = torch.cat([*before, new])[-max(kept, len(new)) :]
        for extra in range(1, losses.discriminator_steps):
            rng = keyed_generator(self.job.seed, step, f"replay-{extra}", self.rank)
            rows = torch.randperm(len(self.replay["fake"]), generator=rng)[: len(fake)]
            old_real, old_fake = (self.replay[name][rows] for name in ("real", "fake"))
            found[extra] = self._seen(old_real), self._seen(old_fake)
        return found

    def _seen(self, latents: Tensor) -> Tensor:
        return latents if self.job.losses.discriminator == "latent" else self.model.decode(latents)

    def edited(self, batch: TrainBatch, bank: SliderBank, step: int) -> Tensor:
        """The near rows' photos as the editor makes them, with one step's gradient: latents."""
        model, seed, rows = self.model, self.job.seed, torch.tensor(batch.near)
        condition = batch.condition.rows(rows)
        context = EditContext(
            predict=partial(bank.predict, model),
            prediction=model.prediction,
            x0=self.photos.latents(batch.photos),
            condition=condition,
            empty=condition,
            lora_scales=batch.lora_scales[batch.near],
            source_of=torch.arange(len(rows), device=model.device),
            seeds=[seed] * len(rows),
            keys=[f"adversary-{step}-{self.rank}-{place}" for place in batch.near],
        )
        # One step drawn at random: the gradient of all would hold as many graphs in memory.
        graded = int(torch.randint(EDIT.steps, (), generator=keyed_generator(seed, step, "graded")))
        run = EditRun(METHODS[EDIT.method](context, EDIT))
        while run.request:
            with torch.set_grad_enabled(run.evaluated == graded):
                predicted = context.predict_now(run.request)
            run.take(predicted)
        assert run.latents is not None
        return run.latents

    @torch.no_grad()
    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """1 for each pair whose real side is judged more real, 0 for the others: [N]."""
        realism = [self.critic.score(seen).mean((1, 2, 3)) for seen in (real, fake)]
        return (realism[0] > realism[1]).float()

    def state(self) -> dict[str, Tensor]:
        """All workers' replay, for a checkpoint. Every worker must call it."""
        shares = over_workers({name: kept.cpu() for name, kept in self.replay.items()})
        return {name: torch.cat([share[name] for share in shares]) for name in self.replay}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue with this worker's share of `state`."""
        self.replay = {
            name: kept.chunk(self.workers)[self.rank].to(self.model.device)
            for name, kept in state.items()
        }


def balanced(
    parameters: list[torch.nn.Parameter], rest: Tensor, adversarial: Tensor, share: float
) -> tuple[list[Tensor], Tensor]:
    """(this worker's gradients of rest + w * adversarial, w): the second pulls with `share` of the
    first one's norm.

    Gradients are averaged over the workers before their norms are taken: what cancels between rows
    is no pull. Every worker must call it.
    """
    pulls = [
        torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (rest, adversarial)
    ]
    norms = [_norm(pull) for pull in pulls]
    weight = share * norms[0] / norms[1].clamp_min(1e-12)
    return [a + weight * b for a, b in zip(*pulls, strict=True)], weight


def _norm(gradients: tuple[Tensor, ...]) -> Tensor:
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    return mean_over_workers(flat).norm()
