"""Arithmetic of memory: what a worker holds of an engine, and what ZeRO shards of it.

The figures it adds up are read off a real step (measure.py). Bytes are of one worker.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bs_ray.models.base import DiffusionModel

GIB = 2**30


def engine_bytes(parameters: int, stage: int, workers: int) -> int:
    """fp32 weights, gradients and AdamW's two moments of `parameters`, as ZeRO shards them."""
    weights = 4 * parameters
    gradients = 4 * parameters // (workers if stage >= 2 else 1)
    moments = 8 * parameters // (workers if stage >= 1 else 1)
    copy = 4 * parameters // workers if stage >= 1 else 0  # the share that its optimizer steps
    return weights + gradients + moments + copy


def base_networks(model: DiffusionModel) -> dict[str, list[Any]]:
    """The networks of a base as `denoiser`, `vae` and `text`."""
    found: dict[str, list[Any]] = {"denoiser": [], "vae": [], "text": []}
    for name, value in vars(model).items():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, nn.Module):
                kind = "denoiser" if part is model.denoiser else "vae" if name == "vae" else "text"
                found[kind].append(part)
    return found


def bytes_of(module: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


# --- arithmetic -------------------------------------------------------------------------------
def sharded_bytes(denoiser: nn.Module, workers: int) -> int:
    """Most bytes of a frozen denoiser on one worker under `engines.shard_frozen`.

    Its share of all parameters, and what is gathered at once: the root's own parameters, a block
    with the blocks around it, and the next block, which is fetched meanwhile.
    """
    blocks = set(getattr(denoiser, "_no_split_modules", None) or ())
    units = [n for n, m in denoiser.named_modules() if n == "" or type(m).__name__ in blocks]
    own = dict.fromkeys(units, 0)
    for name, parameter in denoiser.named_parameters():
        nearest = max((u for u in units if not u or name.startswith(u + ".")), key=len)
        own[nearest] += parameter.numel() * parameter.element_size()

    def around(unit: str) -> int:
        return sum(own[u] for u in units if not u or (unit + ".").startswith(u + "."))

    whole = bytes_of(denoiser)
    gathered = max(around(unit) + own[unit] for unit in units)
    return min(whole, whole - sum(own.values()) * (workers - 1) // workers + gathered)
