"""Methods step by step: each says what it asks of the denoiser, and many are answered at once.

A method is a generator: it yields a Query, is sent the prediction, and returns edited latents. So
the same code runs alone in a loop (`drive`) or, in a server, among others that are at other steps,
under other sliders and strengths (`answers`): rows of one forward pass do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bs_ray.models.base import Condition
from bs_ray.models.diffusion import Prediction
from bs_ray.sliders.slider import Slider

Predict = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""predict(x_t [B], t [B], condition rows [B], strengths [B, N]) -> prediction [B]."""


@dataclass(frozen=True)
class DenoiseRequest:
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


EditGenerator = Generator[DenoiseRequest, Tensor, Tensor]
"""A method under way; what it returns are edited latents [T, C, h, w]."""


class EditRun:
    """A method between two of its queries."""

    def __init__(self, steps: EditGenerator, sliders: Sequence[Slider] = ()):
        """sliders: those whose slots in the bank its queries' strengths count on."""
        self._steps, self.sliders = steps, sliders
        self.evaluated = 0
        """Queries that were answered."""
        self.query: DenoiseRequest | None = None
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
def denoise_together(request_count: Sequence[DenoiseRequest], predict: Predict) -> list[Tensor]:
    """The prediction for each query, in one forward pass; their latents have one size."""
    read = predict(
        torch.cat([query.x_t for query in request_count]),
        torch.cat([query.t for query in request_count]),
        Condition.cat([query.condition for query in request_count]),
        torch.cat([query.strengths for query in request_count]),
    )
    return list(read.split([len(query.x_t) for query in request_count]))


@torch.no_grad()
def run_alone(run: EditRun, predict: Predict) -> Tensor:
    """A method alone, to its end."""
    while run.query:
        [prediction] = denoise_together([run.query], predict)
        run.take(prediction)
    assert run.latents is not None
    return run.latents


def euler(
    kind: Prediction,
    x: Tensor,
    times: Sequence[int],
    ask: Callable[[Tensor, int, Tensor | None], DenoiseRequest],
    read: Callable[[Tensor], Tensor] = lambda prediction: prediction,
) -> EditGenerator:
    """Denoise x [T, C, h, w] from times[0] on by DDIM with eta 0: `euler_path` as queries.

    ask(x, t, estimate) makes the query, with the last step's estimate of x0; read makes the
    prediction for x of its answer, such as guidance.
    """
    estimate: Tensor | None = None
    for now, then in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(x),), now, device=x.device)
        predicted = read((yield ask(x, now, estimate)))
        estimate = kind.to_x0(x, predicted, t)
        x = kind.step(x, predicted, t, None if then is None else torch.full_like(t, then))
    return x
