"""Architectures of published bases: every size, no weights.

`write_architecture` puts one on disk as a diffusers folder without weights: `load_base(folder,
device="meta")` reads it like any other. The numbers are those of the published config.json files;
a test holds them to the published parameter counts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, T5Tokenizer

from bs_ray.models import EMBEDDED, base_folder
from bs_ray.models.sources import at_hand

Config = dict[str, Any]

_CLIP_L: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "vocab_size": 49408,
    "hidden_act": "quick_gelu", "projection_dim": 768, "model_type": "clip_text_model",
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
_CLIP_BIG_G = _CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_T5_XXL: Config = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "model_type": "t5",
    "is_encoder_decoder": True, "tie_word_embeddings": False,
}  # fmt: skip
_VAE: Config = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
_VAE_16 = _VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}

PUBLISHED: dict[str, dict[str, tuple[str, str, Config]]] = {
    "sdxl-base-1.0": {
        "unet": ("diffusers", "UNet2DConditionModel", {
            "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048, "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }),
        "vae": ("diffusers", "AutoencoderKL", _VAE | {"scaling_factor": 0.13025}),
        "text_encoder": ("transformers", "CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _CLIP_BIG_G),
        "tokenizer": ("transformers", "CLIPTokenizer", {}),
        "tokenizer_2": ("transformers", "CLIPTokenizer", {}),
        "scheduler": ("diffusers", "EulerDiscreteScheduler", {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000, "prediction_type": "epsilon",
        }),
    },
    "sd3.5-medium": {
        "transformer": ("diffusers", "SD3Transformer2DModel", {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
            "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
        }),
        "vae": ("diffusers", "AutoencoderKL",
                _VAE_16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection", _CLIP_L),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _CLIP_BIG_G),
        "text_encoder_3": ("transformers", "T5EncoderModel", _T5_XXL),
        "tokenizer": ("transformers", "CLIPTokenizer", {}),
        "tokenizer_2": ("transformers", "CLIPTokenizer", {}),
        "tokenizer_3": ("transformers", "T5Tokenizer", {}),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", _FLOW | {"shift": 3.0}),
    },
    "flux.1-dev": {
        "transformer": ("diffusers", "FluxTransformer2DModel", {
            "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": True,
            "axes_dims_rope": [16, 56, 56],
        }),
        "vae": ("diffusers", "AutoencoderKL",
                _VAE_16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        "text_encoder": ("transformers", "CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("transformers", "T5EncoderModel", _T5_XXL),
        "tokenizer": ("transformers", "CLIPTokenizer", {}),
        "tokenizer_2": ("transformers", "T5Tokenizer", {}),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler",
                      _FLOW | {"shift": 3.0, "use_dynamic_shifting": True}),
    },
}  # fmt: skip
"""Base -> part -> (library, class, config), as in model_index.json and config.json."""

_PIPELINES = {
    "sdxl-base-1.0": "StableDiffusionXLPipeline",
    "sd3.5-medium": "StableDiffusion3Pipeline",
    "flux.1-dev": "FluxPipeline",
}
_TOKENS = {"CLIPTokenizer": 77, "T5Tokenizer": 512}


def published_name(base: str) -> str | None:
    """The entry of PUBLISHED that a path or hub name ends in, such as
    "/models/stable-diffusion-xl-base-1.0"; None where it is none of them."""
    name = base.rstrip("/").rpartition("/")[2].lower()
    for long, short in (("stable-diffusion-xl", "sdxl"), ("stable-diffusion-3.5", "sd3.5")):
        name = name.replace(long, short)
    return name if name in PUBLISHED else None


def write_architecture(name: str, folder: Path) -> None:
    """A published base as a diffusers folder: configs and byte-level tokenizers, no weights."""
    index: dict[str, Any] = {"_class_name": _PIPELINES[name]}
    for part, (library, kind, config) in PUBLISHED[name].items():
        index[part] = [library, kind]
        if kind in _TOKENS:
            _tokenizer(kind).save_pretrained(folder / part)
            continue
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part).mkdir(parents=True, exist_ok=True)
        whole = {"_class_name": kind} | config if library == "diffusers" else config
        (folder / part / file).write_text(json.dumps(whole, indent=1))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _tokenizer(kind: str) -> Any:
    """A tokenizer that knows bytes only; its ends have the published numbers."""
    if kind == "T5Tokenizer":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        letters = [(chr(code), -1.0) for code in range(33, 127)]
        return T5Tokenizer(vocab=[*pieces, ("▁", -1.0), *letters], model_max_length=_TOKENS[kind])
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *(c + "</w>" for c in alphabet)])}
    vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=_TOKENS[kind])


@contextmanager
def architecture_folder(base: str) -> Iterator[Path]:
    """The base's folder; where it is not at hand, the published architecture of its name."""
    published = published_name(base)
    if published and base not in EMBEDDED and not at_hand(base):
        with tempfile.TemporaryDirectory() as scratch:
            write_architecture(published, Path(scratch))
            yield Path(scratch)
    else:
        yield base_folder(base)
