"""Bases of random weights: every family's real diffusers classes in a small configuration.

One function a family, which writes a whole pipeline with `save_pretrained`. Sides, widths and
depths are as small as the classes allow; what is odd about a family (pooled projections, embedded
guidance, batch norm, single blocks) is there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from bs_ray.tiny.nets import build_tokenizer
from bs_ray.tiny.recipe import write_untrained_base

WIDTH = 32  # of every text encoder
_WORDS = ["photo", "person", "smiling", "frowning"]
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


# --- parts ---------------------------------------------------------------------------------------
def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


def lively(network: nn.Module) -> nn.Module:
    """Give every parameter that starts at 0 or 1 (biases, gates, norms) a life of its own."""
    for parameter in network.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def clip_tokenizer() -> transformers.CLIPTokenizer:
    return build_tokenizer(_WORDS, "<|endoftext|>")


def clip(kind: Any = transformers.CLIPTextModelWithProjection) -> nn.Module:
    tokenizer = clip_tokenizer()
    return lively(
        kind(
            transformers.CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                projection_dim=WIDTH,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    )


def t5_tokenizer() -> transformers.T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    letters = [(chr(code), -1.0) for code in range(33, 127)]
    return transformers.T5Tokenizer(vocab=[*pieces, *letters], model_max_length=512)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_ff=WIDTH,
        d_kv=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return lively(transformers.T5EncoderModel(config))


def qwen_tokenizer() -> Any:
    vocab = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHAT
    return tokenizer


def qwen3(layers: int) -> nn.Module:
    return lively(
        transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                vocab_size=len(qwen_tokenizer()),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
            )
        )
    )


def qwen25_vl() -> nn.Module:
    text = {
        "vocab_size": len(qwen_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return lively(transformers.Qwen2_5_VLForConditionalGeneration(config))


_BLOCKS = {
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "sample_size": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""An autoencoder of 4 pixels a latent, and 32 x 32 pictures."""


def vae() -> nn.Module:
    return lively(
        diffusers.AutoencoderKL(
            latent_channels=4,
            scaling_factor=0.7,
            shift_factor=0.2,
            mid_block_add_attention=False,
            **_BLOCKS,
        )
    )


def scheduler(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


# --- families ------------------------------------------------------------------------------------
def write_sdxl(folder: Path, prediction: str = "epsilon") -> None:
    """The untrained tiny base, as a pipeline of that prediction type."""
    write_untrained_base(folder)
    found = diffusers.EulerDiscreteScheduler.load_config(folder / "scheduler")
    kind = diffusers.DDIMScheduler.from_config(found, prediction_type=prediction)
    kind.save_pretrained(folder / "scheduler")


def write_sdxl_v(folder: Path) -> None:
    write_sdxl(folder, "v_prediction")


def write_sd3(folder: Path) -> None:
    """SD3.5-medium's shape: T5 beside two CLIPs, dual attention in the first block, RMS norms."""
    seeded()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    text = t5_wide()
    diffusers.StableDiffusion3Pipeline(
        lively(transformer),
        scheduler(shift=3.0),
        vae(),
        clip(),
        clip_tokenizer(),
        clip(),
        clip_tokenizer(),
        text,
        t5_tokenizer(),
    ).save_pretrained(folder)


def t5_wide() -> nn.Module:
    """As wide as two CLIPs side by side, which SD3 pads to T5's width."""
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=2 * WIDTH,
        d_ff=WIDTH,
        d_kv=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return lively(transformers.T5EncoderModel(config))


def write_flux(folder: Path, guidance_embeds: bool = True) -> None:
    """Flux.1-dev; without embedded guidance, schnell."""
    seeded()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    diffusers.FluxPipeline(
        scheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae(),
        clip(transformers.CLIPTextModel),
        clip_tokenizer(),
        t5(),
        t5_tokenizer(),
        lively(transformer),
    ).save_pretrained(folder)


def write_schnell(folder: Path) -> None:
    write_flux(folder, guidance_embeds=False)


def write_flux2_klein(folder: Path) -> None:
    seeded()
    autoencoder = lively(diffusers.AutoencoderKLFlux2(latent_channels=4, **_BLOCKS))
    autoencoder.bn.running_mean += 0.3 * torch.randn(16)
    autoencoder.bn.running_var *= torch.rand(16) + 0.5
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=32,
        guidance_embeds=False,
    )
    diffusers.Flux2KleinPipeline(
        scheduler(shift=3.0, use_dynamic_shifting=True),
        autoencoder,
        qwen3(28),
        qwen_tokenizer(),
        lively(transformer),
    ).save_pretrained(folder)


def write_zimage(folder: Path) -> None:
    seeded()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    diffusers.ZImagePipeline(
        scheduler(shift=3.0), vae(), qwen3(2), qwen_tokenizer(), lively(transformer)
    ).save_pretrained(folder)


def write_qwenimage(folder: Path) -> None:
    seeded()
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.9, 1.1, 0.7, 1.3],
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    diffusers.QwenImagePipeline(
        scheduler(shift=1.0, use_dynamic_shifting=True, shift_terminal=0.02),
        lively(autoencoder),
        qwen25_vl(),
        qwen_tokenizer(),
        lively(transformer),
    ).save_pretrained(folder)


WRITERS: dict[str, Callable[[Path], None]] = {
    "sdxl": write_sdxl,
    "sdxl-v": write_sdxl_v,
    "sd3": write_sd3,
    "flux": write_flux,
    "schnell": write_schnell,
    "flux2-klein": write_flux2_klein,
    "z-image": write_zimage,
    "qwen-image": write_qwenimage,
}
