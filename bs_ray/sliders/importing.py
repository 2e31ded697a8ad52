"""Sliders from other tools' LoRA files: each layer of the file is found in the base and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bs_ray.models.base import DiffusionModel
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.layer_names import Covered, flat, published_names
from bs_ray.sliders.lora_file import LoraFile, read_lora
from bs_ray.sliders.slider import Slider

Factors = tuple[Tensor, Tensor]


def import_slider(
    path: Path, name: str, base: str, model: DiffusionModel, drop_text_encoder: bool = False
) -> Slider:
    """A file (.safetensors, .pt) or PEFT folder as a slider for `model`, loaded as base `base`.

    drop_text_encoder: leave out what adapts text encoders; the card's training["left_out"] says how
    much that was. Raises SliderError for a file that is no plain LoRA, holds numbers that are not
    finite, or has layers that this base lacks. Nothing in the file is executed.
    """
    found, left_out = read_lora(path, model.part).without_text_encoder(drop_text_encoder)
    factors: dict[str, Factors] = {}
    for layer, pair in _placed(found, model):
        if layer in factors:
            raise SliderError(
                f"slider {path.name}: got layer {layer} twice, under two names; expected one LoRA "
                "in one file"
            )
        factors[layer] = pair
    rank = max(a.shape[0] for a, _ in factors.values())
    exported = found.card
    # What was measured on another base says nothing about this one.
    here = BaseIdentity.of(model)
    measured_here = exported is not None and here.goes_by(exported.base_id)
    training = {"imported_from": path.name} | ({"left_out": left_out} if left_out else {})
    card = Card(
        name=name,
        base=base,
        base_id=model.base_id,
        family=model.family,
        part=model.part,
        rank=rank,
        training=training,
        prompts=exported.prompts if exported else None,
        subject=exported.subject if exported else "",
        calibration=exported.calibration if exported and measured_here else None,
    )
    return Slider(card, {layer: _to_rank(a, b, rank) for layer, (a, b) in factors.items()})


def _placed(found: LoraFile, model: DiffusionModel) -> Iterator[tuple[str, Factors]]:
    """Each layer of the base that the file adapts, with float32 factors; alpha / r is in the
    second."""
    names, layers = published_names(model.denoiser), dict(model.denoiser.named_modules())
    for key, parts in found.layers().items():
        covered = names.get(flat(key), Covered(()))
        weights: list[Any] = [layers[layer].weight for layer in covered.layers]
        down, up = parts["down"].float(), parts["up"].float()
        _check(found, key, weights, down, up)
        scale = found.scale(key, down.shape[0])
        if "alpha" in parts:
            scale = _number(found, key, parts["alpha"]) / down.shape[0]
        up = up * scale
        if covered.swapped:
            up = torch.cat(up.chunk(2)[::-1])
        if len(weights) == 1:
            yield covered.layers[0], (down, up)
            continue
        rows = up.split([len(weight) for weight in weights])
        for layer, part in zip(covered.layers, rows, strict=True):
            yield layer, _without_idle(down, part)


def _check(found: LoraFile, key: str, weights: list[Any], down: Tensor, up: Tensor) -> None:
    fits = weights and (
        down.shape[1:] == weights[0].shape[1:]
        and up.shape[0] == sum(len(weight) for weight in weights)
        and up.shape[1:] == (down.shape[0], *[1] * (down.dim() - 2))
    )
    if not fits:
        shape = [sum(len(weight) for weight in weights), *weights[0].shape[1:]] if weights else []
        here = f"a layer of shape {tuple(shape)}" if weights else "no such layer"
        said = f" (its header says {found.trained_on})" if found.trained_on else ""
        raise SliderError(
            f"slider {found.name}: got factors {tuple(down.shape)} and {tuple(up.shape)} for layer "
            f"{key}, where this base has {here}; expected the base that it was trained on{said}"
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise SliderError(f"slider {found.name}: got numbers that are not finite in layer {key}")


def _number(found: LoraFile, layer: str, alpha: Tensor) -> float:
    if alpha.numel() != 1 or not torch.isfinite(alpha.float()).all():
        raise SliderError(
            f"slider {found.name}: got alpha {alpha.tolist()} for {layer}; expected one number"
        )
    return float(alpha)


def _without_idle(down: Tensor, up: Tensor) -> Factors:
    """One layer's part of a joint LoRA, without the ranks that only other layers use.

    sd-scripts writes queries, keys and values that were trained apart as one layer of three times
    the rank, most of it zeros.
    """
    used = up.any(0)
    used[0] |= not used.any()  # a layer has one rank at least
    return down[used], up[:, used]


def _to_rank(a: Tensor, b: Tensor, rank: int) -> Factors:
    """Factors filled up with zeros to `rank`, since some tools give layers different ranks."""
    missing = rank - a.shape[0]
    if not missing:
        return a, b
    return (
        torch.cat([a, a.new_zeros(missing, *a.shape[1:])]),
        torch.cat([b, b.new_zeros(b.shape[0], missing, *b.shape[2:])], 1),
    )
