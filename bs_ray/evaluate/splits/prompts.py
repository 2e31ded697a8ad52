"""A table of prompts as a split, in the form that Concept Sliders' evaluation uses."""

from __future__ import annotations

import csv
import hashlib
import io

from bs_ray.config.evaluate import PromptSplit
from bs_ray.evaluate.splits import Item
from bs_ray.storage import split_uri

_COLUMNS = ("case_number", "prompt", "evaluation_seed")
_MAX_SEED = 2**63 - 1


class Prompts:
    """Rows of a table, each with a prompt and a seed of its own."""

    generates = True
    drawn = True
    """The base draws them, so its own judges know them."""

    def __init__(self, place: str, items: list[Item]):
        self.title = f"Generations from {place}"
        self._items = items
        self.digest = hashlib.sha256(repr(items).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._items)

    def items(self, first: int, count: int) -> list[Item]:
        """See Split."""
        return self._items[first : first + count]


def open_prompts(split: PromptSplit) -> Prompts:
    """Read the table. Raises ValueError for one that has not its columns, and StorageError."""
    store, key = split_uri(split.prompts)
    text = store.read(key).decode("utf-8-sig", errors="replace")
    table = csv.DictReader(io.StringIO(text))
    if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
        raise ValueError(
            f"prompts: got {split.prompts}, a table with the columns "
            f"{', '.join(table.fieldnames or ()) or '(none)'}; expected {', '.join(_COLUMNS)}: "
            f"{', '.join(missing)} is missing"
        )
    items: list[Item] = []
    for line, row in enumerate(table, start=2):
        if len(items) == split.count:
            break
        try:
            seed = int(float(row["evaluation_seed"]))
            if not 0 <= seed <= _MAX_SEED or not (row["prompt"] or "").strip():
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"prompts: got {split.prompts}, whose line {line} has the prompt "
                f"{row['prompt']!r} and the seed {row['evaluation_seed']!r}; expected words and a "
                "whole number"
            ) from None
        items.append(Item(len(items), f"case-{row['case_number']}", seed, prompt=row["prompt"]))
    if not items:
        raise ValueError(f"prompts: got {split.prompts}, a table without rows; expected prompts")
    return Prompts(split.prompts, items)
