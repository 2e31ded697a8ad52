"""How a request names its sliders: by a name, or by words that are a slider as they are."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bs_ray.config import Words, check_name
from bs_ray.config.words import LONGEST

_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}(@[0-9]{1,4})?$"
Name = Annotated[
    str,
    AfterValidator(lambda name: _checked_name(name)),
    Field(max_length=80, json_schema_extra={"pattern": _PATTERN}),
]


def _checked_name(reference: str) -> str:
    """A reference `name` or `name@version`, which can become no path. Raises ValueError."""
    name, at, version = reference.partition("@")
    check_name(name)
    if at and not (version.isdigit() and len(version) <= 4):
        raise ValueError(f"got version {version[:20]!r}; expected a number, such as {name}@2")
    return reference


class Strict(BaseModel):
    """A part of a request: unknown fields are errors."""

    # Strict, since `false` for a number is a mistake rather than a 0.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class AnySlider(Strict):
    """A slider by its name, or by words that are one as they are."""

    name: Name | None = None
    """`name`, the newest version, or `name@version`."""
    positive: str | None = Field(None, min_length=1, max_length=LONGEST)
    """In place of a name: the prompt that the slider moves towards, such as "person, smiling"."""
    negative: str | None = Field(None, max_length=LONGEST)
    """With `positive`: the prompt that it moves away from, such as "person, frowning"."""
    target: str | None = Field(None, max_length=LONGEST)
    """With `positive`: what the edit is conditioned on; the server's own prompt where left out."""

    @model_validator(mode="after")
    def _name_or_words(self) -> Self:
        said = [self.positive is not None, self.negative is not None]
        if self.name is not None and (any(said) or self.target is not None):
            raise ValueError("got name and words; expected name, or positive and negative")
        if self.name is None and not all(said):
            raise ValueError(
                "got neither a name nor two prompts; expected name, or positive and negative"
            )
        return self

    @property
    def words(self) -> Words | None:
        """The words; None where the slider has a name. Raises ValueError where they are equal."""
        if self.positive is None or self.negative is None:
            return None
        return Words(positive=self.positive, negative=self.negative, target=self.target)

    @property
    def key(self) -> str:
        """What tells it from the request's other sliders: name and version, or the words."""
        return self.name or f"{self.positive!r} / {self.negative!r}"

    @property
    def title(self) -> str:
        """`key` without a version: of these, each may be in a request once."""
        return self.name.partition("@")[0] if self.name else self.key


class SliderScale(AnySlider):
    """How far to move one slider."""

    scale: float
    """Signed strength: 0 leaves the photo as it is, 1 is one unit of the slider's effect."""


class Sweep(AnySlider):
    """One slider at several scales: a picture for each, computed in one pass."""

    scales: list[float] = Field(min_length=1, max_length=16)
