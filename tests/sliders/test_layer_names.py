"""Published names of layers, held against the converters that diffusers publishes."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from torch import Tensor, nn

from bs_ray.sliders.importing import import_slider
from bs_ray.sliders.layer_names import flat, published_names, sgm_name

RANK = 2


@functools.cache
def sdxl_layout() -> Any:
    """A UNet with SDXL's blocks, narrow and without numbers."""
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64, 128),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )


def test_sdxls_names_are_those_of_its_checkpoint() -> None:
    """diffusers' reader of Stability's checkpoints takes each name for the layer that we do."""
    unet = sdxl_layout()
    names = published_names(unet)
    layers = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    attended = {layer.split(".attentions.")[0] for layer in layers if ".attentions." in layer}
    by_sgm = {sgm_name(layer, 2, attended): layer for layer in layers}
    assert len(by_sgm) == len(layers)
    checkpoint = {
        f"model.diffusion_model.{sgm}.{leaf}": torch.tensor(float(number))
        for number, sgm in enumerate(by_sgm)
        for leaf in ("weight", "bias")
    }
    read = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), unet.config)
    for number, (sgm, layer) in enumerate(by_sgm.items()):
        assert read[f"{layer}.weight"] == number, (sgm, layer)
        assert names[flat(sgm)].layers == names[flat(layer)].layers == (layer,)


@pytest.mark.parametrize(
    ("published", "layer"),
    [  # as sd-scripts' library/sdxl_model_util.py and ComfyUI's comfy/utils.py pair them
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        (
            "input_blocks_8_1_transformer_blocks_2_attn2_to_out_0",
            "down_blocks.2.attentions.1.transformer_blocks.2.attn2.to_out.0",
        ),
        ("middle_block_0_emb_layers_1", "mid_block.resnets.0.time_emb_proj"),
        ("middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_1_proj_in", "up_blocks.1.attentions.2.proj_in"),
        ("output_blocks_8_0_in_layers_2", "up_blocks.2.resnets.2.conv1"),
        ("out_2", "conv_out"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("label_emb_0_0", "add_embedding.linear_1"),
        (
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
    ],
)
def test_sdxls_names_by_example(published: str, layer: str) -> None:
    assert published_names(sdxl_layout())[published].layers == (layer,)


def test_sd_scripts_and_comfyui_find_what_is_exported_for_sdxl() -> None:
    """An export names layers as diffusers does. Both tools replace the beginning of such a name
    (`make_unet_conversion_map`, `unet_to_diffusers`) by that of Stability's block."""
    begins = {"mid_block.attentions.0": "middle_block.1"}
    for block in range(3):
        for index in range(3):
            place = 3 * block + index
            begins[f"down_blocks.{block}.attentions.{index}"] = f"input_blocks.{place + 1}.1"
            begins[f"up_blocks.{block}.attentions.{index}"] = f"output_blocks.{place}.1"
    names = published_names(sdxl_layout())
    targets = [c.layers[0] for name, c in names.items() if "transformer_blocks" in name]
    assert len(targets) > 100
    for layer in targets:
        begin = re.match(r".*attentions\.\d+", layer)
        assert begin
        theirs = begins[begin[0]] + layer.removeprefix(begin[0])
        assert names[flat(theirs)].layers == (layer,)


# --- transformers ---------------------------------------------------------------------------------
def kohya(sizes: dict[str, tuple[int, int]], alpha: float) -> dict[str, Tensor]:
    """A LoRA as sd-scripts writes it: name of a layer -> its (outputs, inputs)."""
    tensors = {}
    for layer, (rows, columns) in sizes.items():
        stem = f"lora_unet_{flat(layer)}"
        tensors[f"{stem}.lora_down.weight"] = torch.randn(RANK, columns)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, RANK)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def imported(tensors: dict[str, Tensor], denoiser: nn.Module, folder: Path) -> dict[str, Any]:
    model: Any = SimpleNamespace(
        denoiser=denoiser, base_id="b", former_ids=(), family="flux", part="transformer"
    )
    save_file(tensors, folder / "k.safetensors")
    return import_slider(folder / "k.safetensors", "x", "b", model).factors


def flux(width: int) -> dict[str, tuple[int, int]]:
    """Flux.1's layers of one block of each kind, by sd-scripts' networks/convert_flux_lora.py."""
    found = {
        "single_blocks.0.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "single_blocks.0.modulation.lin": (3 * width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (64, width),
        "img_in": (width, 64),
        "time_in.in_layer": (width, 256),
        "vector_in.out_layer": (width, width),
        "guidance_in.in_layer": (width, 256),
    }
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        found |= {
            f"{block}_attn.qkv": (3 * width, width),
            f"{block}_attn.proj": (width, width),
            f"{block}_mlp.0": (4 * width, width),
            f"{block}_mlp.2": (width, 4 * width),
            f"{block}_mod.lin": (6 * width, width),
        }
    return found


def test_fluxs_names_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    width = 3072  # diffusers' reader knows Flux.1's size alone
    with torch.device("meta"):
        denoiser = diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, guidance_embeds=True
        )
    tensors = kohya(flux(width), alpha=RANK / 2)
    # diffusers leaves the alpha of the final layer's two factors out.
    for layer in ("final_layer_linear", "final_layer_adaLN_modulation_1"):
        tensors[f"lora_unet_{layer}.alpha"] = torch.tensor(float(RANK))
    mine = imported(tensors, denoiser, tmp_path)
    theirs = diffusers.FluxPipeline.lora_state_dict(dict(tensors))
    theirs = {key.removeprefix("transformer."): tensor for key, tensor in theirs.items()}
    assert set(theirs) == {f"{layer}.lora_{f}.weight" for layer in mine for f in "AB"}
    for layer, (a, b) in mine.items():
        down, up = theirs[f"{layer}.lora_A.weight"], theirs[f"{layer}.lora_B.weight"]
        # Rows and columns are enough to see the product's order and scale.
        assert torch.allclose(b[:64] @ a, up[:64] @ down, atol=1e-5), layer
        assert torch.allclose(b @ a[:, :8], up @ down[:, :8], atol=1e-5), layer


def test_flux2s_names_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    width = 32
    with torch.device("meta"):
        denoiser = diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            timestep_guidance_channels=32,
            guidance_embeds=False,
        )
    layers = dict(denoiser.named_modules())
    fused: Any = layers["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]
    out: Any = layers["single_transformer_blocks.0.attn.to_out"]
    sizes = {
        "single_blocks.0.linear1": tuple(fused.weight.shape),
        "single_blocks.0.linear2": tuple(out.weight.shape),
        "img_in": (width, 16),
        "txt_in": (width, 48),
        "time_in.in_layer": (width, 32),
        "final_layer.linear": (16, width),
    }
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        sizes |= {
            f"{block}_attn.qkv": (3 * width, width),
            f"{block}_attn.proj": (width, width),
            f"{block}_mlp.0": (6 * width, width),
            f"{block}_mlp.2": (width, 3 * width),
        }
    tensors = kohya(sizes, alpha=RANK / 2)
    mine = imported(tensors, denoiser, tmp_path)
    theirs = diffusers.Flux2KleinPipeline.lora_state_dict(dict(tensors))
    assert set(theirs) == {f"transformer.{layer}.lora_{f}.weight" for layer in mine for f in "AB"}
    for layer, (a, b) in mine.items():
        down, up = (theirs[f"transformer.{layer}.lora_{factor}.weight"] for factor in "AB")
        assert torch.allclose(b @ a, up @ down, atol=1e-5), layer


def sd3(width: int) -> dict[str, tuple[int, int]]:
    """SD3.5 medium's layers by sd-scripts' library/sd3_models.py, of two blocks."""
    found = {
        "x_embedder.proj": (width, 4),
        "context_embedder": (width, 24),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, 40),
        "y_embedder.mlp.2": (width, width),
        "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for number, stream in ((0, "x"), (0, "context"), (1, "x"), (1, "context")):
        block = f"joint_blocks.{number}.{stream}_block"
        last, double = (number, stream) == (1, "context"), (number, stream) == (0, "x")
        found[f"{block}.attn.qkv"] = (3 * width, width)
        found[f"{block}.adaLN_modulation.1"] = ((2 if last else 9 if double else 6) * width, width)
        if not last:
            found[f"{block}.attn.proj"] = (width, width)
            found[f"{block}.mlp.fc1"] = (4 * width, width)
            found[f"{block}.mlp.fc2"] = (width, 4 * width)
        if double:
            found[f"{block}.attn2.qkv"] = (3 * width, width)
            found[f"{block}.attn2.proj"] = (width, width)
    return found


def test_sd3s_names_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    """diffusers reads no such LoRA of SD3: its reader of checkpoints is given the second factors,
    whose rows are the layer's outputs."""
    width = 32
    with torch.device("meta"):
        denoiser = diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=width,
            pooled_projection_dim=40,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
        )
    tensors = kohya(sd3(width), alpha=RANK)
    stem = "lora_unet_x_embedder_proj"
    tensors[f"{stem}.lora_down.weight"] = torch.randn(RANK, 4, 2, 2)
    tensors[f"{stem}.lora_up.weight"] = torch.randn(width, RANK, 1, 1)
    checkpoint = {"pos_embed": torch.zeros(1)}
    for layer in sd3(width):
        up = tensors[f"lora_unet_{flat(layer)}.lora_up.weight"]
        checkpoint |= {f"{layer}.weight": up, f"{layer}.bias": up[:, 0]}
    theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    theirs = {k.removesuffix(".weight"): t for k, t in theirs.items() if k.endswith(".weight")}
    mine = imported(tensors, denoiser, tmp_path)
    assert mine.keys() == theirs.keys()
    for layer, (_, b) in mine.items():
        assert torch.equal(b, theirs[layer]), layer


def test_parts_trained_apart_take_their_own_ranks(tmp_path: Path) -> None:
    """sd-scripts' split_qkv: one layer of three times the rank, whose second factor is blocks."""
    with torch.device("meta"):
        denoiser = diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=0, attention_head_dim=16, num_attention_heads=2
        )
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    parts = [torch.randn(32, RANK) for _ in range(3)]
    down = torch.randn(3 * RANK, 32)
    tensors = {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": torch.block_diag(*parts),
        f"{stem}.alpha": torch.tensor(3.0 * RANK),
    }
    mine = imported(tensors, denoiser, tmp_path)
    assert {a.shape[0] for a, _ in mine.values()} == {RANK}
    for number, layer in enumerate(("to_q", "to_k", "to_v")):
        a, b = mine[f"transformer_blocks.0.attn.{layer}"]
        assert torch.equal(a, down[RANK * number : RANK * (number + 1)])
        assert torch.equal(b, parts[number])
