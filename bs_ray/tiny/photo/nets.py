"""tiny-photo's networks: SDXL's autoencoder and UNet to the letter, small, for 128 px."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel

from bs_ray.tiny.nets import TEXT_WIDTH
from bs_ray.tiny.photo.photos import SIZE

LATENT_CHANNELS = 8
READER_WIDTHS = (64, 96, 160, 224)


def build_vae() -> AutoencoderKL:
    """128 px RGB <-> 16 x 16 x 8 latents, 3.3 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """SDXL's UNet (text_time embedding, linear projections), 128/128/160 channels wide."""
    time_dim = 32
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 128, 160),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(4, 4, 5),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * time_dim,
        norm_num_groups=16,
    )
