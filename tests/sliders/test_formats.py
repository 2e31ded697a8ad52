"""Other tools' files: each format goes through its public loader and comes back the same."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.formats import export, import_slider
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider

STRENGTH = 0.8


@pytest.fixture(scope="module")
def model(random_base: Path) -> DiffusionModel:
    return load_base(str(random_base))


@pytest.fixture(scope="module")
def slider(model: DiffusionModel) -> Slider:
    return random_slider(model, "smile", seed=3)


@torch.no_grad()
def probe(model: DiffusionModel) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = model.embed(["a face", "a man"])
    return x, torch.tensor([100, 700]), condition


@torch.no_grad()
def ours(model: DiffusionModel, slider: Slider, strength: float = STRENGTH) -> torch.Tensor:
    bank = SliderBank.of([slider])
    bank.attach(model.denoiser)
    x, t, condition = probe(model)
    with bank.scaled(torch.full((2, 1), strength)):
        out = model.predict(x, t, condition)
    bank.detach()
    return out


def written(slider: Slider, form: str, folder: Path) -> Path:
    files = export(slider, form)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder if len(files) > 1 else folder / next(iter(files))


@torch.no_grad()
def by_unet(unet: torch.nn.Module, model: DiffusionModel) -> torch.Tensor:
    x, t, condition = probe(model)
    ids = torch.tensor([64, 64, 0, 0, 64, 64]).expand(2, 6).float()
    added = {"text_embeds": condition.pooled, "time_ids": ids}
    return unet(x, t, encoder_hidden_states=condition.tokens, added_cond_kwargs=added).sample


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_loads_it(model, slider, random_base, tmp_path, form: str) -> None:
    from diffusers import StableDiffusionXLPipeline

    file = written(slider, form, tmp_path)
    pipe = StableDiffusionXLPipeline.from_pretrained(random_base, dtype=torch.float32)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="smile")
    pipe.set_adapters("smile", STRENGTH)
    expected = ours(model, slider)
    assert torch.allclose(by_unet(pipe.unet, model), expected, atol=1e-4)
    assert float((expected - ours(model, slider, 0.0)).abs().max()) > 1e-2


def test_peft_loads_it(model, slider, random_base, tmp_path) -> None:
    from peft import PeftModel

    folder = written(slider, "peft", tmp_path)
    fresh = load_base(str(random_base))
    wrapped = PeftModel.from_pretrained(fresh.denoiser, str(folder))
    full = by_unet(wrapped, model)
    assert torch.allclose(full, ours(model, slider, 1.0), atol=1e-4)


def test_concept_sliders_pt_is_read_as_its_own_pipeline_reads_it(model, slider, tmp_path) -> None:
    from diffusers import StableDiffusionXLPipeline

    alpha, state = 1.0, {}
    for layer, (a, b) in slider.factors.items():
        stem = "lora_unet_" + layer.replace(".", "_")
        state[f"{stem}.lora_down.weight"], state[f"{stem}.lora_up.weight"] = a, b
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    torch.save(state, tmp_path / "age.pt")
    mine = import_slider(tmp_path / "age.pt", "age", "tiny", model)
    found, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(state))
    for layer, (a, b) in mine.factors.items():
        assert torch.equal(a, slider.factors[layer][0])
        assert torch.allclose(b, slider.factors[layer][1] * alpha / 4)
    assert len(found) == 2 * len(mine.factors)
    assert set(alphas.values()) == {alpha} and mine.card.rank == 4


@pytest.mark.parametrize("form", ["diffusers", "peft", "kohya"])
def test_round_trips_are_exact(model, slider, tmp_path, form: str) -> None:
    again = import_slider(written(slider, form, tmp_path), "smile", "tiny", model)
    assert again.factors.keys() == slider.factors.keys()
    for layer, (a, b) in slider.factors.items():
        assert torch.equal(again.factors[layer][0], a) and torch.equal(again.factors[layer][1], b)
    assert again.card.base_id == model.base_id
    assert again.card.training["imported_from"]
    if form != "diffusers":  # our own file is read as what it is, by the registry
        assert again.card.prompts == slider.card.prompts
    assert Slider.from_bytes(again.to_bytes(), "x").card == again.card


def test_convolutions_and_ranks_of_their_own_are_read(model, tmp_path) -> None:
    unet, tensors = model.denoiser, {}
    for layer, rank in (("conv_in", 2), ("down_blocks.0.resnets.0.conv1", 3)):
        weight = unet.get_submodule(layer).weight
        stem = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:])
        tensors[f"{stem}.lora_up.weight"] = torch.randn(weight.shape[0], rank, 1, 1) * 0.02
    save_file(tensors, tmp_path / "conv.safetensors")
    mine = import_slider(tmp_path / "conv.safetensors", "conv", "tiny", model)
    assert mine.card.rank == 3 and not mine.factors["conv_in"][0][2].any()
    assert float((ours(model, mine) - ours(model, mine, 0.0)).abs().max()) > 1e-3


def test_a_transformer_slider_goes_through_diffusers(tmp_path) -> None:
    from diffusers import StableDiffusion3Pipeline

    from bs_ray.models import EMBEDDED

    flow = load_base("tiny-flow")
    slider = random_slider(flow, "smile", seed=1)
    file = written(slider, "kohya", tmp_path)  # ComfyUI reads diffusers' own layout here
    assert all(key.startswith("transformer.") for key in load_file(file))
    pipe = StableDiffusion3Pipeline.from_pretrained(
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


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 16}}, 4.0),
    ],
)
def test_peft_scales_are_those_of_its_config(model, slider, tmp_path, config, factor) -> None:
    folder = written(slider, "peft", tmp_path)
    condition = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(condition | config))
    mine = import_slider(folder, "x", "tiny", model)
    layer = next(name for name in mine.factors if name.endswith("attn1.to_q"))
    assert torch.allclose(mine.factors[layer][1], slider.factors[layer][1] * factor)
    for other in ({"use_dora": True}, {"peft_type": "LOHA"}):
        (folder / "adapter_config.json").write_text(json.dumps(condition | other))
        with pytest.raises(SliderError, match="expected a plain LoRA"):
            import_slider(folder, "x", "tiny", model)


def test_diffusers_header_settings_are_read(model, slider, tmp_path) -> None:
    file = written(slider, "diffusers", tmp_path)
    condition = json.dumps({"unet.r": 4, "unet.lora_alpha": 8})
    save_file(load_file(file), tmp_path / "d.safetensors", {"lora_adapter_metadata": condition})
    mine = import_slider(tmp_path / "d.safetensors", "x", "tiny", model)
    layer = next(iter(mine.factors))
    assert torch.allclose(mine.factors[layer][1], 2 * slider.factors[layer][1])


# --- what is refused -----------------------------------------------------------------------------
class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_pickle_with_code_is_refused_unrun(model, tmp_path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"x": Bomb(tmp_path / "pwned")}))
    torch.save({"x": Bomb(tmp_path / "pwned")}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(SliderError, match=r"holds no LoRA .*Nothing in it was run"):
            import_slider(tmp_path / name, "evil", "tiny", model)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"lora_te_x.lora_down.weight": torch.ones(1)}, "got a text encoder's key"),
        (lambda t: {"rubbish": torch.ones(1)}, "got an unknown key 'rubbish'"),
        (
            lambda t: {
                "lora_unet_nowhere.lora_down.weight": torch.ones(1, 1),
                "lora_unet_nowhere.lora_up.weight": torch.ones(1, 1),
            },
            "no such layer",
        ),
        (lambda t: {k: v for k, v in t.items() if "lora_up" not in k}, "got half a LoRA"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
        (
            lambda t: {k: v[..., :1].contiguous() if v.dim() else v for k, v in t.items()},
            "expected the base that it was trained on",
        ),
        (lambda t: {}, "got no tensors"),
    ],
)
def test_what_does_not_fit_is_said(model, slider, tmp_path, change, message) -> None:
    file = written(slider, "kohya", tmp_path)
    save_file(change(load_file(file)), tmp_path / "changed.safetensors")
    with pytest.raises(SliderError, match=message):
        import_slider(tmp_path / "changed.safetensors", "x", "tiny", model)


def test_mutated_pickles_never_escape_as_tracebacks(model, slider, tmp_path) -> None:
    torch.save({"lora_unet_conv_in.alpha": torch.tensor([1.0, 2.0])}, tmp_path / "a.pt")
    data, rng = (tmp_path / "a.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (tmp_path / "b.pt").write_bytes(bytes(broken))
        with pytest.raises(SliderError):
            import_slider(tmp_path / "b.pt", "x", "tiny", model)


def test_an_alpha_that_is_no_number_is_refused(model, slider, tmp_path) -> None:
    file = written(slider, "kohya", tmp_path)
    for alpha in (torch.tensor(float("nan")), torch.tensor([1.0, 2.0])):
        tensors = load_file(file)
        tensors = {k: alpha.clone() if k.endswith(".alpha") else v for k, v in tensors.items()}
        save_file(tensors, tmp_path / "n.safetensors")
        with pytest.raises(SliderError, match="expected one number"):
            import_slider(tmp_path / "n.safetensors", "x", "tiny", model)


def test_corrupt_and_missing_files(model, slider, tmp_path) -> None:
    file = written(slider, "diffusers", tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SliderError, match="got a file that holds no LoRA"):
        import_slider(file, "x", "tiny", model)
    with pytest.raises(SliderError, match="which does not exist"):
        import_slider(tmp_path / "none.pt", "x", "tiny", model)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(SliderError, match="got a file that holds no LoRA"):
        import_slider(tmp_path / "peft", "x", "tiny", model)
