"""Gradient checkpointing changes memory, and no number."""

import torch

from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import assemble, one_step
from tests.train.conftest import make_job, photo_rows


def test_recomputed_activations_see_the_same_strengths(base) -> None:
    """Recomputing happens in the backward pass, after the forward's strengths are gone."""
    losses = {"perceptual": 0, "adversarial": 0}
    found = []
    for checkpointing in (False, True):
        model = load_base(str(base))
        job = make_job(losses=losses, gradient_checkpointing=checkpointing)
        photos = PhotoPool.load(photo_rows(), model)
        state = assemble(job, model, photos, None, PlainEngine)
        for step in range(2):
            one_step(state, step)
        found.append([p.detach() for p in state.bank.parameters()])
    plain, recomputed = found
    assert any(p.abs().max() > 1e-4 for p in plain)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, recomputed, strict=True))
