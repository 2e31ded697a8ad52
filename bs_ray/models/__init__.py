"""Diffusion bases, a file for each family, behind one class: `base.DiffusionModel`.

`load_base` is the way in; `diffusion` holds noise, steps and guidance. Knows nothing of sliders.
May import config and storage.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bs_ray.models.base import DiffusionModel, Framing

_PACKAGE = Path(__file__).parent.parent
EMBEDDED = {
    "tiny": _PACKAGE / "tiny" / "weights",
    "tiny-flow": _PACKAGE / "tiny" / "weights-flow",
    "tiny-photo": _PACKAGE / "tiny" / "weights-photo",
}
"""Bases that ship in the package: name -> diffusers folder."""

FAMILIES = {
    "StableDiffusionXLPipeline": "sdxl:SDXL",
    "StableDiffusion3Pipeline": "sd3:SD3",
    "FluxPipeline": "flux:Flux",
    "Flux2KleinPipeline": "flux2:Flux2Klein",
    "ZImagePipeline": "zimage:ZImage",
    "QwenImagePipeline": "qwenimage:QwenImage",
}
"""Pipeline class of a folder's model_index.json -> module and class here that load it."""


def base_folder(base: str) -> Path:
    """Where the files of a base are: in the package for an embedded one, otherwise at its path."""
    return EMBEDDED.get(base, Path(base))


def absolute_base(base: str) -> str:
    """The base's name for workers elsewhere, which have working folders of their own."""
    return base if base in EMBEDDED else str(Path(base).absolute())


def load_base(base: str, **options: Any) -> DiffusionModel:
    """Load a base by job-file name: one of EMBEDDED, or a diffusers folder of any family here.

    Options go to the family's `load` (dtype, device). Raises BaseNotFound; nothing is downloaded.
    """
    folder = base_folder(base)
    module, _, family = FAMILIES[_pipeline(folder)].partition(":")
    loader = getattr(import_module(f"bs_ray.models.{module}"), family)
    model: DiffusionModel = loader.load(folder, **options)
    model.framing = framing_of(folder)
    return model


def framing_of(folder: Path) -> Framing | None:
    """Where faces stand in the base's square: `framing.eyes` of its card.json.

    None where there is no card, or no framing in it. Raises BaseNotFound for one of another form.
    """
    from bs_ray.models.base import BaseNotFound

    card = folder / "card.json"
    if not card.is_file():
        return None
    try:
        framing = json.loads(card.read_text()).get("framing")
        if framing is None:
            return None
        (left_x, left_y), (right_x, right_y) = framing["eyes"]
        eyes = (float(left_x), float(left_y)), (float(right_x), float(right_y))
        if not 0 <= left_x < right_x <= 1:
            raise ValueError(f"eyes at {eyes}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BaseNotFound(
            f"base: got {card}, whose framing cannot be read ({type(error).__name__}: {error}); "
            'expected {"framing": {"eyes": [[x, y], [x, y]]}}, shares of the side in [0, 1], the '
            "left one first"
        ) from None
    return eyes


def identify_base(base: str) -> str:
    """A base's content hash, without loading it. Raises BaseNotFound."""
    from bs_ray.models.folder import base_hash

    folder = base_folder(base)
    _pipeline(folder)
    return base_hash(folder)


def _pipeline(folder: Path) -> str:
    """Name of the base's pipeline class, which is one of FAMILIES. Raises BaseNotFound."""
    from bs_ray.models.base import BaseNotFound
    from bs_ray.models.folder import pipeline_class

    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise BaseNotFound(f"base: got {folder}, a {name}; expected one of {', '.join(FAMILIES)}")
    return name
