"""A base as one .safetensors file, as fine-tunes of SDXL are passed around.

Such a file holds the networks under the names of the original code, and neither settings nor
vocabularies. It is converted once for a node, by diffusers' own tables, into a diffusers folder.
The settings are SDXL's, or those of a folder beside the file; the vocabularies come from there,
from the hub's cache of SDXL, or from an installed package `open_clip`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import transformers
from diffusers.loaders import single_file_utils as tables
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bs_ray.models.base import BaseNotFound
from bs_ray.models.folder import shapes_of
from bs_ray.models.identity import read_header, stamps
from bs_ray.models.published import write_architecture
from bs_ray.models.sources import hub
from bs_ray.models.sources.cache import made_once

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
_CLASSES: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}
_TOKENIZERS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
"""SDXL's tokenizers, and the token that each pads with."""
_PREFIX = "text_model."
"""Of the names of CLIP's towers, in some versions of transformers."""
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES, _LENGTH = 48894, 77
"""Of CLIP's vocabulary: how many of the file's merges it has, and the tokens of a prompt."""


def folder(path: Path) -> Path:
    """The diffusers folder that a file becomes. Raises BaseNotFound for a file that is none of
    SDXL's, lacks a network, or whose vocabularies are nowhere to be found."""
    if not path.is_file():
        raise BaseNotFound(f"base: got {path}, which is no file; expected a .safetensors of SDXL")
    _, header = read_header(path)
    if lacking := [p for p in _PREFIXES.values() if not any(key.startswith(p) for key in header)]:
        raise BaseNotFound(
            f"base: got {path}, which has no tensors under {', '.join(lacking)}; expected a whole "
            "checkpoint of SDXL or a fine-tune of it. Other families are read as diffusers folders"
        )
    beside = next(filter(_has_settings, (path.with_suffix(""), path.parent)), None)
    vocabularies = _vocabularies(path, beside)
    stat = path.stat()
    settings = list(stamps(beside)) if beside else []
    about = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {settings} {vocabularies}"
    name = f"{path.stem}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"

    def make(part: Path) -> None:
        _write_settings(part, beside, vocabularies, header.keys())
        _convert(path, part, header.keys())

    return made_once(name, make)


def _has_settings(place: Path) -> bool:
    return all((place / part / "config.json").is_file() for part in _PREFIXES)


def _vocabularies(path: Path, beside: Path | None) -> Path:
    """A folder with both tokenizers, or CLIP's own file. Raises BaseNotFound."""
    for place in filter(None, (beside, hub.cached(_SDXL, None))):
        if all((place / part).is_dir() for part in _TOKENIZERS):
            return place
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            if (Path(root) / _VOCABULARY).is_file():
                return Path(root) / _VOCABULARY
    raise BaseNotFound(
        f"base: got {path}, beside which there are no tokenizers, which such a file does not hold; "
        f"expected them in {path.with_suffix('')}/ (tokenizer/ and tokenizer_2/ of any SDXL, with "
        f"the config.json of each network), {_SDXL} in the hub's cache (`bs-ray bases fetch "
        f"{_SDXL}`), or CLIP's vocabulary in a package (`pip install --no-deps open-clip-torch`)"
    )


def _write_settings(part: Path, beside: Path | None, vocabularies: Path, keys: Any) -> None:
    shutil.rmtree(part)
    write_architecture("sdxl-base-1.0", part)
    if beside:
        _copy_settings(beside, part)
    for name, pad in _TOKENIZERS.items():
        shutil.rmtree(part / name)
        if vocabularies.is_dir():
            shutil.copytree(vocabularies / name, part / name)
        else:
            _clip_tokenizer(vocabularies, pad).save_pretrained(part / name)
    if "v_pred" in keys:  # how checkpoints that predict v mark themselves
        file = part / "scheduler" / "scheduler_config.json"
        found = json.loads(file.read_text()) | {"prediction_type": "v_prediction"}
        found["rescale_betas_zero_snr"] = "ztsnr" in keys
        file.write_text(json.dumps(found, indent=1))


def _copy_settings(beside: Path, part: Path) -> None:
    for name in (*_PREFIXES, "scheduler"):
        if (beside / name).is_dir():
            shutil.rmtree(part / name)
            (part / name).mkdir()
            for file in (beside / name).glob("*config.json"):  # not the indices of weights
                shutil.copy(file, part / name)
    if (beside / "model_index.json").is_file():
        shutil.copy(beside / "model_index.json", part)


def _convert(path: Path, part: Path, keys: Any) -> None:
    """Write each network's tensors, as they are, under diffusers' names. Raises BaseNotFound."""
    with safe_open(path, "pt") as file:
        for name, prefix in _PREFIXES.items():
            config = json.loads((part / name / "config.json").read_text())
            state = {key: file.get_tensor(key) for key in keys if key.startswith(prefix)}
            found = _named(path, part / name, _CONVERT[name](state, config), _CLASSES[name])
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            save_file(found, part / name / f"{stem}.safetensors", {"format": "pt"})


def _open_clip(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    sized = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    found: dict[str, Tensor] = tables.convert_open_clip_checkpoint(
        sized, state, _PREFIXES["text_encoder_2"]
    )
    return found


_CONVERT: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]] = {
    "unet": tables.convert_ldm_unet_checkpoint,
    "vae": tables.convert_ldm_vae_checkpoint,
    "text_encoder": lambda state, _: tables.convert_ldm_clip_checkpoint(state),
    "text_encoder_2": _open_clip,
}


def _named(path: Path, part: Path, converted: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """The tensors under the names that the network has for them today.

    Raises BaseNotFound unless they are all there and fit: diffusers would make up missing ones.
    """
    given = {key.removeprefix(_PREFIX): tensor for key, tensor in converted.items()}
    found, wrong = {}, []
    for key, parameter in shapes_of(network, part).named_parameters():
        tensor = given.get(key.removeprefix(_PREFIX))
        if tensor is None or tensor.shape != parameter.shape:
            wrong.append(key)
        else:
            found[key] = tensor.contiguous()
    if wrong:
        raise BaseNotFound(
            f"base: got {path}, in whose {part.name} {len(wrong)} of {len(found) + len(wrong)} "
            f"tensors are missing or have another shape, such as {wrong[0]}; expected a whole "
            "checkpoint of SDXL's shape. For another shape put its diffusers configs into "
            f"{path.with_suffix('')}/"
        )
    return found


# --- CLIP's vocabulary ---------------------------------------------------------------------------
def _clip_tokenizer(file: Path, pad: str) -> Any:
    """CLIP's tokenizer from the file of its merges (Radford et al. 2021)."""
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1] if line]
    symbols = list(_byte_symbols())
    words = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token=pad, model_max_length=_LENGTH
    )


def _byte_symbols() -> Iterator[str]:
    """The character that stands for each byte, in the vocabulary's order: printable ones stand for
    themselves and come first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, plain)
    yield from map(chr, range(256, 256 + 256 - len(plain)))
