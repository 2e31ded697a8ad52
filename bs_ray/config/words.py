"""Words that become a slider as they are: a positive and a negative prompt, nothing to train."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from bs_ray.config.base import Prompts, Settings

ETA = 3.0
"""What the difference of the two predictions is multiplied by at strength 1, as in training."""
LONGEST = 500


class Words(Settings):
    """A slider without weights, from its prompts alone (docs/method.md, "Sliders of words")."""

    positive: str = Field(min_length=1, max_length=LONGEST)
    """What strength 1 moves towards, such as "person, smiling"."""
    negative: str = Field(max_length=LONGEST)
    """What strength -1 moves towards, such as "person, frowning"; "" is the empty prompt."""
    target: str | None = Field(None, max_length=LONGEST)
    """What the slider acts on; the phrases that both prompts have, such as "person", where left
    out."""
    disentangle: list[str] = []
    """Attributes to hold still, as in a train job's prompts; each costs two more evaluations a
    step."""
    eta: float = Field(ETA, gt=0)
    """What the difference of the two predictions is multiplied by at strength 1."""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if _phrases(self.positive) == _phrases(self.negative):
            raise ValueError(
                f"got {self.positive!r} for both positive and negative; expected words that say "
                "opposite things"
            )
        return self

    @property
    def prompts(self) -> Prompts:
        """The prompts of the slider's card."""
        shared = [p for p in _phrases(self.positive) if p in _phrases(self.negative)]
        return Prompts(
            target=", ".join(shared) if self.target is None else self.target,
            positive=self.positive,
            negative=self.negative,
            disentangle=self.disentangle,
        )

    @property
    def label(self) -> str:
        """What the positive prompt says more than the negative one, as a name: "smiling"."""
        own = [p for p in _phrases(self.positive) if p not in _phrases(self.negative)]
        plain = re.sub(r"[^a-z0-9]+", "-", " ".join(own).lower()).strip("-")
        return plain[:40].strip("-") or "words"


class WordsAtStrength(Words):
    """Words in a job's `sliders`, under a name of the job's own."""

    strength: float | list[float]
    """Signed; several make a grid, as for other sliders."""


class MeasuredWords(Words):
    """Words in an evaluate job, in place of a slider."""

    moves: str = ""
    """What they are meant to move: a reading of a judge, or `clip`. Where left out, the reading of
    their name in `sliders`, and in `compare` what the first arm should move."""


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]
