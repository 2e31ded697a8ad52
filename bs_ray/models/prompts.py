"""What a base reads of a prompt: so many tokens, and of a small vocabulary only its own words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bs_ray.models.base import DiffusionModel

_FEW_TOKENS = 5_000
"""A smaller vocabulary holds a base's own words and letters. Published ones have 32,000 and more,
and spell any word in pieces that they were trained on."""
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


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, without the commas between its phrases."""
    return prompt.replace(",", " ").split()


def unknown_words(words: Iterable[str], readers: Iterable[Reader]) -> set[str]:
    """Those of some words that a base of few words does not know.

    It reads them letter by letter, and no training has given letters a meaning. Empty where the
    vocabulary cannot tell: in a base of published size, or with another tokenizer than CLIP's.
    """
    tokenizers = [tokenizer for tokenizer, _ in readers]
    if not all(len(one) < _FEW_TOKENS and _is_whole(one, "a") for one in tokenizers):
        return set()
    return {word for word in words if not any(_is_whole(one, word) for one in tokenizers)}


def _is_whole(tokenizer: Any, word: str) -> bool:
    """Whether a word is one token of CLIP's: all but the last of its pieces lack a word's end."""
    return all(piece.endswith("</w>") for piece in tokenizer.tokenize(word))


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
