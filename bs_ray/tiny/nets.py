"""The networks of `tiny` and `tiny-flow`: SDXL's and SD3.5's architectures, small."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from bs_ray.tiny.faces import SIZE

TEXT_WIDTH = 64
MAX_TOKENS = 32
LATENT_CHANNELS = 4


def build_tokenizer(words: list[str], pad_token: str) -> CLIPTokenizer:
    """CLIP's byte-level BPE, whose merges make each of `words` one token; other text is bytes.

    SDXL pads its first tokenizer with the end token and its second with "!".
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *(c + "</w>" for c in alphabet)])}
    merges: list[tuple[str, str]] = []
    for word in sorted(words, key=len, reverse=True):  # "woman" must not start as wo + man
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            left, right, *rest = symbols
            if (left, right) not in merges:
                merges.append((left, right))
            symbols = [left + right, *rest]
            vocab.setdefault(symbols[0], len(vocab))
    vocab["<|startoftext|>"] = len(vocab)
    # CLIP's text model pools at the end token; like CLIP's own, it has the highest id.
    vocab["<|endoftext|>"] = len(vocab)
    return CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=MAX_TOKENS
    )


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A text tower: hidden states [B, 32, 64], projection [B, 64]."""
    return CLIPTextModelWithProjection(_text_config(tokenizer))


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The CLIP judge: a text tower as the second one, and a vision transformer."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=TEXT_WIDTH,
    )
    config = CLIPConfig(
        text_config=_text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=TEXT_WIDTH,
    )
    return CLIPModel(config)


def build_vae() -> AutoencoderKL:
    """64 px RGB <-> 16 x 16 x 4 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """SDXL's UNet (text_time embedding, linear projections), 64/128/128 channels wide."""
    time_dim = 32
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * time_dim,
        norm_num_groups=16,
    )


def build_transformer() -> SD3Transformer2DModel:
    """SD3.5's MMDiT, six blocks of width 160: 8 x 8 image tokens beside the caption's 32."""
    heads, head_dim = 5, 32
    return SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=SIZE // 8,
        qk_norm="rms_norm",
    )


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """SD3's own scheduler, without a shift, which is meant for larger pictures."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own scheduler settings."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """int64 [B, 32], padded and cut as the SDXL pipeline does."""
    return tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
