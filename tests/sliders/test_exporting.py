"""Exported files: public loaders read them, and they come back as they were."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bs_ray.models import EMBEDDED, load_base
from bs_ray.sliders.exporting import export
from bs_ray.sliders.importing import import_slider
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider
from tests.sliders.predictions import MEASURED, STRENGTH, by_unet, ours, probe, written


@pytest.mark.parametrize(("form", "dtype"), [("diffusers", "fp32"), ("kohya", "fp16")])
def test_diffusers_loads_it(random_model, smile, pipe, tmp_path, form, dtype) -> None:
    file = written(smile, form, tmp_path, dtype)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="smile")
    pipe.set_adapters("smile", STRENGTH)
    expected = ours(random_model, smile)
    moved = float((expected - ours(random_model, smile, 0.0)).abs().max())
    error = float((by_unet(pipe.unet, random_model) - expected).abs().max())
    pipe.unload_lora_weights()
    print(f"{form} {dtype}: moves {moved:.3f}, error {error:.2g}")
    assert error < (1e-5 if dtype == "fp32" else 2e-3 * moved)
    assert moved > 1e-2


def test_peft_loads_it(random_model, smile, random_base, tmp_path) -> None:
    from peft import PeftModel

    folder = written(smile, "peft", tmp_path)
    fresh = load_base(str(random_base))
    wrapped = PeftModel.from_pretrained(fresh.denoiser, str(folder))
    full = by_unet(wrapped, random_model)
    assert torch.allclose(full, ours(random_model, smile, 1.0), atol=1e-5)


def test_a_transformer_slider_goes_through_diffusers(tmp_path) -> None:
    from diffusers import StableDiffusion3Pipeline

    flow = load_base("tiny-flow")
    slider = random_slider(flow, "smile", seed=1)
    file = written(slider, "kohya", tmp_path)  # ComfyUI reads diffusers' own layout here
    assert all(key.startswith("transformer.") for key in load_file(file))
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(
        EMBEDDED["tiny-flow"], text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="smile")
    pipe.set_adapters("smile", STRENGTH)
    x, t, condition = probe(flow)
    with torch.no_grad():
        theirs = pipe.transformer(
            x,
            timestep=t.float() + 1,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
        ).sample
    expected = ours(flow, slider)
    assert torch.allclose(theirs, expected, atol=1e-4)
    assert float((expected - ours(flow, slider, 0.0)).abs().max()) > 1e-3
    assert import_slider(file, "smile", "tiny-flow", flow).factors.keys() == slider.factors.keys()


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_round_trips_are_exact(random_model, smile, tmp_path, form: str) -> None:
    again = import_slider(written(smile, form, tmp_path), "smile", "tiny", random_model)
    assert again.factors.keys() == smile.factors.keys()
    for layer, (a, b) in smile.factors.items():
        assert torch.equal(again.factors[layer][0], a) and torch.equal(again.factors[layer][1], b)
    assert again.card.base_id == random_model.base_id
    assert again.card.training == {"imported_from": again.card.training["imported_from"]}
    if form != "diffusers":  # our own file is read as what it is, by the registry
        assert again.card.prompts == smile.card.prompts
    assert Slider.from_bytes(again.to_bytes(), "x").card == again.card


def test_half_precision_keeps_small_factors(smile) -> None:
    """The second factor of a slider may lie below what half precision can hold."""
    small = replace(smile, factors={k: (a, b * 1e-6) for k, (a, b) in smile.factors.items()})
    data = export(small, "diffusers")["smile.safetensors"]
    again = Slider.from_bytes(data, "x")
    assert len(data) < 0.6 * len(export(small, "diffusers", "fp32")["smile.safetensors"])
    for layer, (a, b) in small.factors.items():
        down, up = again.factors[layer]
        assert down.dtype == up.dtype == torch.float32  # a slider's file is read as before
        change = (b @ a).norm()
        assert float(((up @ down) - b @ a).norm() / change) < 3e-3
        assert float((b.half().float() @ a - b @ a).norm() / change) > 0.1  # it does need care


def header(data: bytes, folder: Path) -> dict[str, str]:
    (folder / "h.safetensors").write_bytes(data)
    with safe_open(folder / "h.safetensors", "pt") as opened:
        return dict(opened.metadata())


def test_its_header_says_what_other_tools_look_for(smile, tmp_path) -> None:
    """sd-scripts' words. A1111 shows a file under SDXL where the version starts with sdxl_."""
    card = smile.card.model_copy(update={"calibration": MEASURED})
    data = export(replace(smile, card=card), "kohya")["smile.safetensors"]
    found = header(data, tmp_path)
    assert found["modelspec.usage_hint"] == "LoRA scale -1.5 to 2"
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "4")
    assert found["ss_output_name"] == found["modelspec.title"] == "smile"
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert {t.dtype for t in load_file(tmp_path / "h.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("family", "layers", "version", "architecture"),
    [
        ("flux", ["transformer_blocks.0.attn.to_q"], "flux1", "flux-1/lora"),
        ("sd3", ["transformer_blocks.0.attn.to_q"], "medium", "stable-diffusion-3-medium/lora"),
        (
            "sd3",
            ["transformer_blocks.0.attn2.to_q"],
            "5-medium",
            "stable-diffusion-3-5-medium/lora",
        ),
        ("sd3", ["transformer_blocks.37.ff.net.2"], "5-large", "stable-diffusion-3-5-large/lora"),
        ("zimage", ["layers.0.attention.to_q"], None, None),
    ],
)
def test_each_familys_words(smile, tmp_path, family, layers, version, architecture) -> None:
    card = smile.card.model_copy(update={"family": family, "part": "transformer"})
    pair = next(iter(smile.factors.values()))
    slider = Slider(card, dict.fromkeys(layers, pair))
    found = header(export(slider, "kohya")["smile.safetensors"], tmp_path)
    assert found.get("ss_base_model_version") == version
    assert found.get("modelspec.architecture") == architecture
    assert "ss_network_module" not in found  # its keys are diffusers', not that module's


def test_pefts_config_names_every_layer(smile) -> None:
    config = json.loads(export(smile, "peft")["adapter_config.json"])
    assert config["target_modules"] == sorted(smile.factors) and config["lora_alpha"] == 4
