"""Methods step by step: each says what it asks of the denoiser, and many are answered at once.

A method is a generator: it yields a Query, is sent the prediction, and returns edited latents. So
the same code runs alone in a loop (`drive`) or, in a server, among others that are at other steps,
under other sliders and strengths (`advance`): rows of one forward pass do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bs_ray.models.base import Condition

Predict = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""predict(x_t [B], t [B], condition rows [B], strengths [B, N]) -> prediction [B]."""


@dataclass(frozen=True)
class Query:
    """Rows for the denoiser."""

    x_t: Tensor
    """Noisy latents [B, C, h, w]."""
    t: Tensor
    """int64 [B]; rows may differ."""
    condition: Condition
    """B rows."""
    strengths: Tensor
    """[B, N]."""
    estimate: Tensor | None = None
    """What the result looks like so far, latents [T, C, h, w], where the method can say."""


Steps = Generator[Query, Tensor, Tensor]
"""A method under way; what it returns are edited latents [T, C, h, w]."""


class Going:
    """A method between two of its queries."""

    def __init__(self, steps: Steps):
        self._steps = steps
        self.evaluated = 0
        """Queries that were answered."""
        self.query: Query | None = None
        self.latents: Tensor | None = None
        """The result, once there is no query left."""
        self._resume(None)

    def take(self, prediction: Tensor) -> None:
        """The answer to `query`; on to the next one."""
        self.evaluated += 1
        self._resume(prediction)

    def _resume(self, prediction: Tensor | None) -> None:
        try:
            # A generator that has not begun takes None only.
            self.query = self._steps.send(prediction)  # type: ignore[arg-type]
        except StopIteration as done:
            self.query, self.latents = None, done.value


@torch.no_grad()
def advance(goings: Sequence[Going], predict: Predict) -> None:
    """One step of all, in one forward pass; they have queries with latents of one size.

    Where the pass raises, all of them stand where they stood.
    """
    queries = [going.query for going in goings if going.query]
    read = predict(
        torch.cat([query.x_t for query in queries]),
        torch.cat([query.t for query in queries]),
        Condition.cat([query.condition for query in queries]),
        torch.cat([query.strengths for query in queries]),
    )
    parts = read.split([len(query.x_t) for query in queries])
    for going, part in zip(goings, parts, strict=True):
        going.take(part)


@torch.no_grad()
def drive(steps: Steps, predict: Predict) -> Tensor:
    """A method alone, to its end."""
    going = Going(steps)
    while going.query:
        advance([going], predict)
    assert going.latents is not None
    return going.latents
