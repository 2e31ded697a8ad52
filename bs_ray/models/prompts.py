"""How much of a prompt a base reads: text encoders take so many tokens, and leave out the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bs_ray.models.base import DiffusionModel

Reader = tuple[Any, int]
"""A tokenizer, and how many tokens of a prompt the encoder behind it reads."""


def unread(prompt: str, readers: Iterable[Reader]) -> str:
    """The end of a prompt that no text encoder reads, from a whole word on; "" as a rule."""
    words, most = prompt.split(), 0
    for tokenizer, limit in readers:
        if _tokens(tokenizer, prompt) <= limit:
            return ""
        most = max(most, _fitting(tokenizer, words, limit))
    return " ".join(words[most:])


def cut_notes(model: DiffusionModel, prompts: Iterable[str]) -> list[str]:
    """What the base does not read of some prompts, a note for each of those that are too long."""
    cut = {prompt: unread(prompt, model.readers()) for prompt in dict.fromkeys(prompts)}
    return [
        f"prompt too long: the base reads {prompt[: -len(end)].strip()[-40:]!r} last, and not "
        f"{end[:200]!r}"
        for prompt, end in cut.items()
        if end
    ]


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def _fitting(tokenizer: Any, words: list[str], limit: int) -> int:
    """How many words from the first on have at most `limit` tokens."""
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if _tokens(tokenizer, " ".join(words[:middle])) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
