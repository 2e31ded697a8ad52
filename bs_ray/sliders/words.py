"""Sliders of words: a card with prompts and no weights, which moves a photo all the same.

No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from bs_ray.config import Words
from bs_ray.models.prompts import Reader, unknown_words, words_of
from bs_ray.sliders.card import Card, SliderError

MIN_GAP = 2e-3
"""Below this difference of e(c+) and e(c-), relative to a prediction, they differ by rounding
alone."""


class PromptsDoNotSeparate(SliderError):
    """The base predicts the same for c+ and c-, so there is nothing for a slider to do or learn."""

    @classmethod
    def measured(cls, name: str, ends: tuple[str, str], gap: float, cosine: float) -> Self:
        """ends: c+ and c-. gap: their predictions' relative difference."""
        return cls(
            f"slider {name}: got {ends[0]!r} and {ends[1]!r}, for which the base predicts the "
            f"same (relative difference {gap:.1e}, cosine {cosine:.6f}); expected a difference of "
            f"at least {MIN_GAP:g}. Use words that the base knows and that say opposite things"
        )

    @classmethod
    def unknown(cls, name: str, ends: tuple[str, str], words: Iterable[str]) -> Self:
        """words: what the ends say differently, of which the base knows none."""
        some = ", ".join(sorted(words))
        return cls(
            f"slider {name}: got {ends[0]!r} and {ends[1]!r}, which differ by {some}, and the base "
            "knows no such word; expected a word of its captions in one of them at least "
            "(docs/training.md lists them)"
        )


def check_known(name: str, ends: tuple[str, str], readers: Sequence[Reader]) -> None:
    """Raise PromptsDoNotSeparate where c+ and c- differ by words alone that the base does not know.

    Their predictions differ all the same, by what the base happens to make of single letters.
    readers: of the base.
    """
    one, other = (set(words_of(end)) for end in ends)
    apart = one ^ other
    if apart and apart <= unknown_words(apart, readers):
        raise PromptsDoNotSeparate.unknown(name, ends, apart)


def card_of_words(words: Words, base: str, base_id: str, name: str | None = None) -> Card:
    """The card of the words as a slider of this base. name: `words.label` where left out."""
    return Card(
        name=name or words.label,
        base=base,
        base_id=base_id,
        family="",
        part="",
        prompts=words.prompts,
        rank=0,
        eta=words.eta,
    )


def words_said(cards: Iterable[Card]) -> dict[str, Any]:
    """What an output says of the words that made it: reference -> prompts and eta."""
    return {
        card.reference: {"eta": card.eta, **card.prompts.model_dump()}
        for card in cards
        if card.pulls and card.prompts
    }
