"""What sliders of words add to a prediction (docs/method.md, "Sliders of words").

A row under trained sliders is predicted as e_s(x_t, c_t). Words add `scale * eta * (e(x_t, c+) -
e(x_t, c-))` of the base without sliders (FreeSliders, arXiv 2511.00103). So what holds a photo in
displacement is left as it is, and what moves it is theirs (FlowSlider, arXiv 2604.02088).

Legend: B rows of a request, P prompts, N slots of the bank; scales [B, P]: what the base's
prediction for each prompt is multiplied by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import Predict
from bs_ray.sliders.card import Card
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import MIN_GAP, PromptsDoNotSeparate, check_known

_KEPT = 256
"""Embedded prompts and checked sliders that are kept; a server's callers may send any number."""
_CHECKED_AT = (0.3, 0.6)
"""Shares of the noise range at which prompts must separate."""


@dataclass(frozen=True)
class Words:
    """The prompts of a run's sliders of words."""

    prompts: Condition
    """P rows, each another prompt."""
    target: int | None = None
    """Which of them the rows are conditioned on anyway, so that their own prediction serves."""


class WordRows:
    """The base's predictions that the rows of one request need beside their own, each once."""

    def __init__(self, scales: Tensor, lora_scales: Tensor, words: Words, same: Tensor | None):
        """lora_scales [B, N]. same: int64 [B], the first row with a row's own x_t and t; None where
        all differ."""
        wanted = scales != 0
        self._own = torch.zeros_like(wanted)
        if words.target is not None:
            self._own[:, words.target] = wanted[:, words.target] & (lora_scales == 0).all(1)
        rows, prompts = (wanted & ~self._own).nonzero(as_tuple=True)
        places = rows if same is None else same[rows]
        pairs, which = torch.unique(torch.stack([places, prompts]), dim=1, return_inverse=True)
        self.rows: Tensor = pairs[0]
        """int64 [E]: of each further prediction, the row whose x_t and t it is at."""
        self.condition = words.prompts.rows(pairs[1])
        self._scales = scales
        self._place = torch.full_like(wanted, -1, dtype=torch.int64)
        self._place[rows, prompts] = which

    def added(self, own: Tensor, further: Tensor) -> Tensor:
        """own [B, C, h, w] with what the words add; further [E, C, h, w]: the predictions."""
        found = own.clone()
        for prompt in range(self._scales.shape[1]):
            scale = self._scales[:, prompt, None, None, None]
            here, at = self._own[:, prompt], self._place[:, prompt]
            found[here] += scale[here] * own[here]
            there = at >= 0
            found[there] += scale[there] * further[at[there]]
        return found


class WordBook:
    """What an Editor knows of prompts: their embeddings, and which words the base tells apart."""

    def __init__(self, model: DiffusionModel, predict: Predict, slots: int):
        """predict, slots: of the Editor's bank."""
        self._model, self._predict, self._slots = model, predict, slots
        self.embed = lru_cache(_KEPT)(lambda prompt: model.embed([prompt]))
        """embed(prompt) -> a Condition of one row."""
        self._check = lru_cache(_KEPT)(self._gap)

    def table(
        self, mixes: Sequence[Mix], sliders: Mapping[str, Slider], target: str | None
    ) -> tuple[Tensor, Words | None]:
        """Scales [len(mixes), P], and their prompts; None where no mix has words.

        target: the prompt that all rows are conditioned on; None where they differ. Raises
        PromptsDoNotSeparate.
        """
        scales: list[dict[str, float]] = []
        for mix in mixes:
            row: dict[str, float] = {}
            for reference, scale in mix.lora_scales.items():
                for prompt, pull in sliders[reference].card.pulls.items():
                    row[prompt] = row.get(prompt, 0.0) + scale * pull
            scales.append(row)
        prompts = sorted({prompt for row in scales for prompt in row})
        table = torch.tensor([[row.get(p, 0.0) for p in prompts] for row in scales])
        if not prompts:
            return table.view(len(mixes), 0).to(self._model.device), None
        for reference in dict.fromkeys(r for mix in mixes for r in mix.lora_scales):
            self.check(sliders[reference].card)
        found = Condition.cat([self.embed(prompt) for prompt in prompts])
        own = prompts.index(target) if target in prompts else None
        return table.to(self._model.device), Words(found, own)

    def check(self, card: Card) -> None:
        """Raise PromptsDoNotSeparate for words between which the base sees no difference."""
        if card.prompts is None or not card.pulls:
            return
        ends = card.prompts.positive, card.prompts.negative
        check_known(card.name, ends, self._model.readers())
        gap, cosine = self._check(*ends)
        if gap < MIN_GAP:
            raise PromptsDoNotSeparate.measured(card.name, ends, gap, cosine)

    @torch.no_grad()
    def _gap(self, positive: str, negative: str) -> tuple[float, float]:
        """(relative difference, cosine) of the two predictions, at noised blank latents."""
        model = self._model
        shares = torch.tensor(_CHECKED_AT) * model.prediction.num_train_timesteps
        t = shares.long().to(model.device)
        noise = batch_noise(model.latent_shape, [0] * len(t), ["words"] * len(t), 0).to(t.device)
        x_t = model.prediction.add_noise(torch.zeros_like(noise), noise, t).repeat(2, 1, 1, 1)
        ends = Condition.cat(
            [self.embed(positive).repeat(len(t)), self.embed(negative).repeat(len(t))]
        )
        off = torch.zeros(len(x_t), self._slots, device=t.device)
        high, low = self._predict(x_t, t.repeat(2), ends, off).flatten(1).chunk(2)
        gap = float(((high - low).norm(dim=1) / high.norm(dim=1)).max())
        return gap, float(torch.cosine_similarity(high, low).min())
