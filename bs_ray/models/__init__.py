"""Diffusion bases, a file for each family, behind one class: `base.DiffusionModel`.

`load_base` is the way in; `diffusion` holds noise, steps and guidance. Knows nothing of sliders.
May import config and storage.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bs_ray.models.base import DiffusionModel, Framing
    from bs_ray.models.base_identity import BaseIdentity

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
    """The diffusers folder of a base on this node: in the package for an embedded one, else where
    `sources` finds it, which may have to download it first. Raises BaseNotFound."""
    from bs_ray.models.sources import folder_of

    return EMBEDDED.get(base) or folder_of(base)


def absolute_base(base: str) -> str:
    """The base's name for workers elsewhere: a full path, or the revision that is used here."""
    from bs_ray.models.sources import pinned

    return base if base in EMBEDDED else pinned(base)


def load_base(base: str, **options: Any) -> DiffusionModel:
    """Load a base by job-file name: one of EMBEDDED, or any other source of a known family.

    Options go to the family's `load` (dtype, device). Raises BaseNotFound.
    """
    from bs_ray.models.identity import former_ids

    folder = base_folder(base)
    model: DiffusionModel = _family(folder).load(folder, **options)
    model.framing = framing_of(folder)
    model.former_ids = former_ids(folder)
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


def identify_base(base: str) -> BaseIdentity:
    """Which base it is, without loading it, once its files have been checked.

    Takes less than a second beside what is downloaded. Raises BaseNotFound for a folder that is not
    whole, holds anything but safetensors, or has a scheduler or a tokenizer that cannot be used.
    """
    from bs_ray.models.identity import stamps

    folder = base_folder(base)
    return _identified(folder, tuple(stamps(folder)))


@lru_cache(maxsize=16)
def _identified(folder: Path, _: tuple[object, ...]) -> BaseIdentity:
    """Of a folder, looked at again where one of its files has changed."""
    from bs_ray.models.base_identity import BaseIdentity
    from bs_ray.models.folder import check_whole
    from bs_ray.models.identity import base_hash, former_ids, layers_of

    family = _family(folder)
    check_whole(folder)
    layers = layers_of(folder, family.part)
    return BaseIdentity(base_hash(folder), family.family, former_ids(folder), layers)


def _family(folder: Path) -> Any:
    """The class that loads the folder, once its scheduler is known to be one of that family's.

    Raises BaseNotFound.
    """
    from bs_ray.models.base import BaseNotFound
    from bs_ray.models.folder import pipeline_class, scheduler_config
    from bs_ray.models.schedulers import check_flow, diffusion_of

    name = pipeline_class(folder)
    if name not in FAMILIES:
        raise BaseNotFound(f"base: got {folder}, a {name}; expected one of {', '.join(FAMILIES)}")
    if name == "StableDiffusionXLPipeline":
        diffusion_of(scheduler_config(folder), folder)
    else:
        check_flow(scheduler_config(folder), folder)
    module, _, family = FAMILIES[name].partition(":")
    return getattr(import_module(f"bs_ray.models.{module}"), family)
