"""How methods run: each asks for predictions step by step, and several are answered together.

A method is a generator: it yields a DenoiseRequest, is sent the prediction, and returns the edited
latents. So the same code runs alone (`run_alone`) or, in a server, beside runs that are at other
steps, under other sliders and strengths (`denoise_together`): the rows of one forward pass do not
influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bs_ray.editing.words import WordRows, Words
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import Prediction
from bs_ray.sliders.bank import Predict
from bs_ray.sliders.slider import Slider


@dataclass(frozen=True)
class DenoiseRequest:
    """Rows that the denoiser is to look at."""

    x_t: Tensor
    """Noisy latents [B, C, h, w]."""
    t: Tensor
    """int64 [B]; rows may differ."""
    condition: Condition
    """B rows."""
    lora_scales: Tensor
    """[B, slots of the bank], and a column more for each prompt of `words`: what the base's
    prediction for it is multiplied by before it is added to the row's own."""
    estimate: Tensor | None = None
    """What the result looks like so far, latents [T, C, h, w]; None where the method cannot say."""
    words: Words | None = None
    same: Tensor | None = None
    """int64 [B]: the first row with the x_t and t of each row; None where all rows differ."""


EditGenerator = Generator[DenoiseRequest, Tensor, Tensor]
"""A method at work: it yields requests, is sent predictions and returns latents [T, C, h, w]."""


class EditRun:
    """A method that waits for the answer to its request."""

    def __init__(self, steps: EditGenerator, sliders: Sequence[Slider] = ()):
        """sliders: those that the requests' LoRA scales refer to; they must stay in the bank."""
        self._steps, self.sliders = steps, sliders
        self.evaluated = 0
        """How many requests were answered."""
        self.request: DenoiseRequest | None = None
        """What the method asks for now; None once it has finished."""
        self.latents: Tensor | None = None
        """The result, once the method has finished."""
        self._resume(None)

    def take(self, prediction: Tensor) -> None:
        """Give the method the answer to its request, and let it go on to the next one."""
        self.evaluated += 1
        self._resume(prediction)

    def _resume(self, prediction: Tensor | None) -> None:
        try:
            # A generator that has not started accepts nothing but None.
            self.request = self._steps.send(prediction)  # type: ignore[arg-type]
        except StopIteration as done:
            self.request, self.latents = None, done.value


class _Rows:
    """What the denoiser looks at for one request: its rows, then those that its words add."""

    def __init__(self, request: DenoiseRequest):
        self.x_t, self.t, self.condition = request.x_t, request.t, request.condition
        self.lora_scales, self._added = request.lora_scales, None
        if request.words is None:
            return
        slots = self.lora_scales.shape[1] - len(request.words.prompts.tokens)
        self.lora_scales, scales = self.lora_scales[:, :slots], self.lora_scales[:, slots:]
        self._added = added = WordRows(scales, self.lora_scales, request.words, request.same)
        off = self.lora_scales.new_zeros(len(added.rows), slots)
        self.x_t = torch.cat([self.x_t, self.x_t[added.rows]])
        self.t = torch.cat([self.t, self.t[added.rows]])
        self.condition = Condition.cat([self.condition, added.condition])
        self.lora_scales = torch.cat([self.lora_scales, off])

    def answer(self, predicted: Tensor) -> Tensor:
        """The request's prediction out of that of all rows."""
        if self._added is None:
            return predicted
        further = len(self._added.rows)
        own = len(predicted) - further
        return self._added.added(*predicted.split([own, further]))


def denoise(requests: Sequence[DenoiseRequest], predict: Predict) -> list[Tensor]:
    """Each request's prediction, all from one forward pass; their latents have one size."""
    rows = [_Rows(request) for request in requests]
    predicted = predict(
        torch.cat([one.x_t for one in rows]),
        torch.cat([one.t for one in rows]),
        Condition.cat([one.condition for one in rows]),
        torch.cat([one.lora_scales for one in rows]),
    )
    parts = predicted.split([len(one.x_t) for one in rows])
    return [one.answer(part) for one, part in zip(rows, parts, strict=True)]


@torch.no_grad()
def denoise_together(requests: Sequence[DenoiseRequest], predict: Predict) -> list[Tensor]:
    """`denoise` without gradients."""
    return denoise(requests, predict)


@torch.no_grad()
def run_alone(run: EditRun, predict: Predict) -> Tensor:
    """Take a run to its end by itself, and return its latents."""
    while run.request:
        [prediction] = denoise_together([run.request], predict)
        run.take(prediction)
    assert run.latents is not None
    return run.latents


def euler(
    kind: Prediction,
    x: Tensor,
    times: Sequence[int],
    make_request: Callable[[Tensor, int, Tensor | None], DenoiseRequest],
    guide: Callable[[Tensor], Tensor] = lambda prediction: prediction,
) -> EditGenerator:
    """Denoise x [T, C, h, w] from times[0] on by DDIM with eta 0, one request a step.

    make_request(x, t, estimate) says what to ask for; estimate is x0 as of the step before. guide
    turns an answer into the prediction for x, for requests that hold more rows than x.
    """
    estimate: Tensor | None = None
    for now, then in zip(times, [*times[1:], None], strict=True):
        t = torch.full((len(x),), now, device=x.device)
        predicted = guide((yield make_request(x, now, estimate)))
        estimate = kind.to_x0(x, predicted, t)
        x = kind.step(x, predicted, t, None if then is None else torch.full_like(t, then))
    return x
