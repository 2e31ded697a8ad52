"""What published LoRA files call a base's layers, and which of diffusers' layers each name covers.

A file's name of a layer is read with "_" for ".", as kohya's sd-scripts writes it. Sources, read as
facts: sd-scripts (`make_unet_conversion_map` in library/sdxl_model_util.py, networks/lora_flux.py,
networks/convert_flux_lora.py, library/sd3_models.py); ComfyUI (`unet_to_diffusers`,
`mmdit_to_diffusers` and `flux_to_diffusers` in comfy/utils.py, comfy/lora.py); diffusers
(loaders/single_file_utils.py, loaders/lora_conversion_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

# --- Stability's UNet of SDXL ("sgm"), by diffusers' names ----------------------------------------
_SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_PLACE = {"resnets": 0, "attentions": 1}
_UNET_LAYER = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.([a-z]+)\.(\d+)\.(.+)")

# --- transformers: names outside the blocks, then (their block, diffusers' block, their layers) ---
# A base has the layers of one family only, and a name that covers a layer it lacks is left out.
_OUTSIDE = (
    # Flux.1 and Flux.2
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    # SD3
    ("x_embedder.proj", "pos_embed.proj"),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    # all of them
    ("final_layer.linear", "proj_out"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
_IMAGE_QKV = "attn.to_q attn.to_k attn.to_v"
_TEXT_QKV = "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
_BLOCKS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "double_blocks",
        "transformer_blocks",
        {
            "img_attn.qkv": _IMAGE_QKV,
            "img_attn.proj": "attn.to_out.0",
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "img_mod.lin": "norm1.linear",
            "txt_attn.qkv": _TEXT_QKV,
            "txt_attn.proj": "attn.to_add_out",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
            "txt_mod.lin": "norm1_context.linear",
        },
    ),
    (
        "single_blocks",
        "single_transformer_blocks",
        {
            "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
            "linear2": "proj_out",
            "modulation.lin": "norm.linear",
        },
    ),
    (  # Flux.2, whose other names are Flux.1's
        "double_blocks",
        "transformer_blocks",
        {
            "img_mlp.0": "ff.linear_in",
            "img_mlp.2": "ff.linear_out",
            "txt_mlp.0": "ff_context.linear_in",
            "txt_mlp.2": "ff_context.linear_out",
        },
    ),
    (
        "single_blocks",
        "single_transformer_blocks",
        {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
    ),
    (  # SD3
        "joint_blocks",
        "transformer_blocks",
        {
            "x_block.attn.qkv": _IMAGE_QKV,
            "x_block.attn.proj": "attn.to_out.0",
            "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
            "x_block.attn2.proj": "attn2.to_out.0",
            "x_block.mlp.fc1": "ff.net.0.proj",
            "x_block.mlp.fc2": "ff.net.2",
            "x_block.adaLN_modulation.1": "norm1.linear",
            "context_block.attn.qkv": _TEXT_QKV,
            "context_block.attn.proj": "attn.to_add_out",
            "context_block.mlp.fc1": "ff_context.net.0.proj",
            "context_block.mlp.fc2": "ff_context.net.2",
            "context_block.adaLN_modulation.1": "norm1_context.linear",
        },
    ),
)


class Covered(NamedTuple):
    """What one published name stands for."""

    layers: tuple[str, ...]
    """Layers of the base; of several, the outputs stand one after the other in the file's layer."""
    swapped: bool = False
    """The file's outputs are shift, then scale; the base's are scale, then shift."""


def flat(name: str) -> str:
    """A layer's name with underscores for dots."""
    return name.replace(".", "_")


def published_names(denoiser: nn.Module) -> dict[str, Covered]:
    """Every name that a LoRA file may give a layer of this network, flat, and what it covers."""
    layers = {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    names = {flat(layer): Covered((layer,)) for layer in layers}
    assert len(names) == len(layers), "two layers of one flat name"
    for layer in layers:
        if layer.endswith(".to_out.0"):  # diffusers' attention processors left out the 0
            names.setdefault(flat(layer.removesuffix(".0")), Covered((layer,)))
    config: Any = getattr(denoiser, "config", None)
    per_block = getattr(config, "layers_per_block", None)
    if isinstance(per_block, int):
        with_attention = {layer.split(".attentions.")[0] for layer in layers if ".att" in layer}
        for layer in layers:
            published = sgm_name(layer, per_block, with_attention)
            names[flat(published)] = Covered((layer,))
    for published, covered in _transformer_names(denoiser):
        if all(layer in layers for layer in covered):
            rows, columns = layers[covered[0]].weight.shape[:2]
            # The last modulation before an output has two parts, which diffusers keeps in its own
            # order; all others have the published one.
            swapped = published.endswith("adaLN_modulation.1") and rows == 2 * columns
            names[flat(published)] = Covered(covered, swapped)
    return names


def sgm_name(layer: str, per_block: int, with_attention: set[str]) -> str:
    """Stability's name of a layer of SDXL's UNet; `layer` itself where SDXL has no such layer.

    layer: diffusers' name. per_block: the UNet's layers_per_block. with_attention: the blocks that
    have attention, such as "up_blocks.0".
    """
    if layer in _SGM_OUTSIDE:
        return _SGM_OUTSIDE[layer]
    match = _UNET_LAYER.fullmatch(layer)
    if match is None:
        return layer
    side, block, kind, index, rest = match.groups()
    rest = _SGM_RESNET.get(rest, rest)
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    first = (per_block + 1) * int(block)
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block + 1}.0.op"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{block}" in with_attention else 1
        return f"output_blocks.{first + per_block}.{place}.{rest}"
    number = first + int(index)
    place = _SGM_PLACE[kind]
    if side == "down":
        return f"input_blocks.{number + 1}.{place}.{rest}"
    return f"output_blocks.{number}.{place}.{rest}"


def _transformer_names(denoiser: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Published name and the layers that it would cover, whether this network has them or not."""
    for published, layer in _OUTSIDE:
        yield published, (layer,)
    for theirs, ours, inside in _BLOCKS:
        blocks: Any = getattr(denoiser, ours, ())
        for number in range(len(blocks)):
            for published, covered in inside.items():
                yield (
                    f"{theirs}.{number}.{published}",
                    tuple(f"{ours}.{number}.{layer}" for layer in covered.split()),
                )
