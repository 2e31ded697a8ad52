"""Other tools' files: an imported slider predicts what plain diffusers predicts with the file."""

import copy
import json
import os
import pickle
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from bs_ray.cli import app
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.importing import import_slider
from bs_ray.sliders.layer_names import flat, sgm_name
from bs_ray.sliders.registry import Registry
from tests.sliders.predictions import MEASURED, by_unet, ours, written

Factors = dict[str, tuple[Tensor, Tensor]]


def factors_of(model: DiffusionModel, wanted: Callable[[str], bool], seed: int = 5) -> Factors:
    """Random factors of rank 4, and of rank 3 for convolutions, for the layers that are wanted."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, module in model.denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and wanted(layer):
            rows, *columns = module.weight.shape
            rank = 4 if isinstance(module, nn.Linear) else 3
            spread = 1.0 / float(torch.tensor(columns).prod()) ** 0.5
            a = torch.randn(rank, *columns, generator=generator) * spread
            b = torch.randn(rows, rank, generator=generator) * 0.1
            found[layer] = a, (b if isinstance(module, nn.Linear) else b[..., None, None])
    return found


def attended(name: str) -> bool:
    return "transformer_blocks" in name


def projected(name: str) -> bool:
    return ".attn" in name


# Each returns the file's tensors, for factors in the base's own names.
def kohya_sgm(factors: Factors) -> dict[str, Tensor]:
    """What sd-scripts and LyCORIS (LoCon) write for SDXL: every layer, in half precision."""
    with_attention = {layer.split(".att")[0] for layer in factors if ".attentions." in layer}
    renamed = {sgm_name(layer, 1, with_attention): pair for layer, pair in factors.items()}
    return {key: tensor.half() for key, tensor in kohya(renamed).items()}


def kohya(factors: Factors) -> dict[str, Tensor]:
    tensors = {}
    for layer, (a, b) in factors.items():
        stem = f"lora_unet_{flat(layer)}"
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = a, b
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


def kohya_bfloat16(factors: Factors) -> dict[str, Tensor]:
    return {key: tensor.bfloat16() for key, tensor in kohya(factors).items()}


def diffusers_processors(factors: Factors) -> dict[str, Tensor]:
    """As diffusers 0.16 to 0.21 wrote attention processors."""
    tensors = {}
    for layer, (a, b) in factors.items():
        block, _, projection = layer.removesuffix(".0").rpartition(".")
        stem = f"unet.{block}.processor.{projection}_lora"
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = a, b
    return tensors


def diffusers_dots(factors: Factors) -> dict[str, Tensor]:
    """As diffusers 0.22 to 0.24 wrote layers that hold their own LoRA."""
    tensors = {}
    for layer, (a, b) in factors.items():
        stem = f"unet.{layer}.lora"
        tensors[f"{stem}.down.weight"], tensors[f"{stem}.up.weight"] = a, b
    return tensors


def diffusers_peft(factors: Factors) -> dict[str, Tensor]:
    tensors = {}
    for layer, (a, b) in factors.items():
        tensors[f"unet.{layer}.lora_A.weight"], tensors[f"unet.{layer}.lora_B.weight"] = a, b
    return tensors


@pytest.mark.parametrize(
    ("naming", "wanted"),
    [
        (kohya_sgm, lambda layer: True),
        (kohya_bfloat16, attended),
        (diffusers_processors, projected),
        (diffusers_dots, attended),
        (diffusers_peft, lambda layer: True),
    ],
)
def test_it_predicts_what_diffusers_predicts(random_model, pipe, tmp_path, naming, wanted) -> None:
    tensors = naming(factors_of(random_model, wanted))
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "x.safetensors"
    )
    mine = ours(random_model, import_slider(tmp_path / "x.safetensors", "x", "b", random_model), 1)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    theirs = by_unet(pipe.unet, random_model)
    pipe.unload_lora_weights()
    moved = float((theirs - by_unet(pipe.unet, random_model)).abs().max())
    error = float((mine - theirs).abs().max())
    print(f"{naming.__name__}: moves {moved:.3f}, error {error:.2g}")
    assert error < 1e-5 and moved > 1e-2


def merged(model: DiffusionModel, factors: Factors, alphas: Iterable[float]) -> nn.Module:
    """The base's network with alpha / r B A added to its weights."""
    network = copy.deepcopy(model.denoiser)
    for (layer, (a, b)), alpha in zip(factors.items(), alphas, strict=True):
        weight: Any = network.get_submodule(layer).weight
        weight.data += alpha / len(a) * (b.flatten(1) @ a.flatten(1)).view_as(weight)
    return network


@pytest.mark.parametrize("file", ["age.pt", "age.safetensors"])
def test_each_layer_has_its_own_rank_and_alpha(random_model, tmp_path, file) -> None:
    """Concept Sliders' training method "full" writes a .pt of all linear and convolution layers, by
    diffusers' names. (diffusers itself loses alphas that differ between attention layers.)"""
    factors = factors_of(random_model, lambda layer: True)
    assert {"conv_in", "time_embedding.linear_1"} <= factors.keys()
    alphas = [1.0 + number % 3 for number in range(len(factors))]
    tensors = kohya(factors)
    for layer, alpha in zip(factors, alphas, strict=True):
        tensors[f"lora_unet_{flat(layer)}.alpha"] = torch.tensor(alpha)
    (torch.save if file.endswith("pt") else save_file)(tensors, tmp_path / file)
    mine = import_slider(tmp_path / file, "age", "tiny", random_model)
    assert mine.factors.keys() == factors.keys() and mine.card.rank == 4
    assert not mine.factors["conv_in"][0][3].any()  # smaller ranks are filled up with zeros
    theirs = by_unet(merged(random_model, factors, alphas), random_model)
    assert torch.allclose(ours(random_model, mine, 1.0), theirs, atol=1e-5)
    assert not torch.allclose(ours(random_model, mine, 0.0), theirs, atol=1e-2)


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 16}}, 4.0),
    ],
)
def test_peft_scales_are_those_of_its_config(random_model, smile, tmp_path, config, factor) -> None:
    folder = written(smile, "peft", tmp_path)
    plain = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    mine = import_slider(folder, "x", "tiny", random_model)
    layer = next(name for name in mine.factors if name.endswith("attn1.to_q"))
    assert torch.allclose(mine.factors[layer][1], smile.factors[layer][1] * factor)


def test_diffusers_header_settings_are_read_for_the_denoiser(random_model, smile, tmp_path) -> None:
    file = written(smile, "diffusers", tmp_path)
    about = {"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 32}
    metadata = {"lora_adapter_metadata": json.dumps(about)}
    save_file(load_file(file), tmp_path / "d.safetensors", metadata)
    mine = import_slider(tmp_path / "d.safetensors", "x", "tiny", random_model)
    layer = next(iter(mine.factors))
    assert torch.allclose(mine.factors[layer][1], 2 * smile.factors[layer][1])


def test_what_was_measured_on_another_base_is_left_behind(random_model, smile, tmp_path) -> None:
    card = smile.card.model_copy(update={"calibration": MEASURED})
    file = written(replace(smile, card=card), "kohya", tmp_path)
    assert import_slider(file, "x", "tiny", random_model).card.calibration == MEASURED
    other: Any = copy.copy(random_model)
    other.base_id = "another"
    imported = import_slider(file, "x", "tiny", other).card
    assert imported.calibration is None and imported.prompts == smile.card.prompts


# --- text encoders --------------------------------------------------------------------------------
def with_text(file: Path, up: float, stem: str = "lora_te1_text_model_encoder_layers_0_mlp_fc1"):
    tensors = load_file(file)
    tensors[f"{stem}.lora_down.weight"] = torch.ones(4, 8)
    tensors[f"{stem}.lora_up.weight"] = torch.full((8, 4), up)
    tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize(
    "stem",
    [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    ],
)
def test_text_encoders_are_refused_or_dropped(random_model, smile, tmp_path, stem) -> None:
    file = with_text(written(smile, "kohya", tmp_path), 0.5, stem)
    with pytest.raises(SliderError, match=r"got 3 keys of a text encoder.*--drop-text-encoder"):
        import_slider(file, "x", "tiny", random_model)
    mine = import_slider(file, "x", "tiny", random_model, drop_text_encoder=True)
    assert mine.factors.keys() == smile.factors.keys()
    assert mine.card.training["left_out"] == "3 keys of the text encoder"


def test_a_text_encoder_that_does_nothing_is_no_reason_to_refuse(
    random_model, smile, tmp_path
) -> None:
    file = with_text(written(smile, "kohya", tmp_path), 0.0)
    mine = import_slider(file, "x", "tiny", random_model)
    assert mine.factors.keys() == smile.factors.keys()
    assert mine.card.training["left_out"] == "3 keys of the text encoder, which did nothing"


def test_the_command_warns_of_what_it_leaves_out(smile, random_base, tmp_path) -> None:
    file = with_text(written(smile, "kohya", tmp_path), 0.5)
    options = [str(file), "--name", "smile", "--base", str(random_base)]
    options += ["--registry", str(tmp_path / "sliders")]
    refused = CliRunner().invoke(app, ["sliders", "import", *options])
    assert isinstance(refused.exception, SliderError) or refused.exit_code == 2
    done = CliRunner().invoke(app, ["sliders", "import", *options, "--drop-text-encoder"])
    assert done.exit_code == 0, done.output
    assert "warning: left out 3 keys of the text encoder" in done.output
    assert Registry(str(tmp_path / "sliders")).resolve("smile").factors.keys() == (
        smile.factors.keys()
    )


# --- what is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.dora_scale", "DoRA"),
        ("unet.x.lora_magnitude_vector", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("base_model.model.x.oft_R.weight", "OFT"),
        ("lora_unet_x.on_input", "IA3"),
        ("base_model.model.x.ia3_l", "IA3"),
        ("lora_unet_x.b1.weight", "GLoRA"),
        ("lora_unet_x.lora_mid.weight", "LoCon in three factors"),
        ("diffusion_model.x.diff", "full difference"),
    ],
)
@pytest.mark.parametrize("among", [True, False])
def test_other_adapters_are_refused_by_name(
    random_model, smile, tmp_path, key, kind, among
) -> None:
    """Also beside LoRA keys, which would load without them as another LoRA."""
    tensors = load_file(written(smile, "kohya", tmp_path)) if among else {}
    save_file(tensors | {key: torch.ones(2, 2)}, tmp_path / "k.safetensors")
    with pytest.raises(SliderError, match=rf"got a {kind}.*expected a plain LoRA.*xtract"):
        import_slider(tmp_path / "k.safetensors", "x", "tiny", random_model)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"peft_type": "LOHA"}])
def test_other_adapters_in_peft_folders(random_model, smile, tmp_path, config) -> None:
    folder = written(smile, "peft", tmp_path)
    plain = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    with pytest.raises(SliderError, match="expected a plain LoRA"):
        import_slider(folder, "x", "tiny", random_model)


SHARED = Path(os.environ.get("BS_RAY_SHARED", Path(__file__).parents[3] / "shared"))
REPORTS = SHARED / "data" / "reports" / "09"


@pytest.mark.skipif(not REPORTS.is_dir(), reason="needs the files of reports")
@pytest.mark.parametrize(
    ("file", "layers", "message"),
    [
        ("diffusers-lora-dot", 70, ""),
        ("diffusers-old", 14, ""),
        ("kohya-te", 70, ""),
        ("kohya-dora", 0, "got a DoRA"),
        ("loha", 0, "got a LoHa"),
    ],
)
def test_reported_files(file: str, layers: int, message: str) -> None:
    tiny, path = load_base("tiny", device="meta"), REPORTS / f"{file}.safetensors"
    if message:
        with pytest.raises(SliderError, match=message):
            import_slider(path, "x", "tiny", tiny)
    else:
        assert len(import_slider(path, "x", "tiny", tiny).factors) == layers


def first_twice(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One layer under two of its names."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    stem, other = f"lora_unet_{flat(layer)}", f"unet.{layer}"
    return tensors | {
        f"{other}.lora_A.weight": tensors[f"{stem}.lora_down.weight"].clone(),
        f"{other}.lora_B.weight": tensors[f"{stem}.lora_up.weight"].clone(),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"rubbish": torch.ones(1)}, "got an unknown key 'rubbish'"),
        (
            lambda t: {
                "lora_unet_nowhere.lora_down.weight": torch.ones(1, 1),
                "lora_unet_nowhere.lora_up.weight": torch.ones(1, 1),
            },
            r"no such layer; .*\(its header says sd_v1\)",
        ),
        (lambda t: {k: v for k, v in t.items() if "lora_up" not in k}, "got half a LoRA"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
        (
            lambda t: {k: v[..., :1].contiguous() if v.dim() else v for k, v in t.items()},
            "expected the base that it was trained on",
        ),
        (lambda t: {}, "got no tensors"),
        (first_twice, "twice, under two names"),
    ],
)
def test_what_does_not_fit_is_said(random_model, smile, tmp_path, change, message) -> None:
    tensors = change(load_file(written(smile, "kohya", tmp_path)))
    save_file(tensors, tmp_path / "changed.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(SliderError, match=message):
        import_slider(tmp_path / "changed.safetensors", "x", "tiny", random_model)


def test_an_alpha_that_is_no_number_is_refused(random_model, smile, tmp_path) -> None:
    file = written(smile, "kohya", tmp_path)
    for alpha in (torch.tensor(float("nan")), torch.tensor([1.0, 2.0])):
        tensors = load_file(file)
        tensors = {k: alpha.clone() if k.endswith(".alpha") else v for k, v in tensors.items()}
        save_file(tensors, tmp_path / "n.safetensors")
        with pytest.raises(SliderError, match="expected one number"):
            import_slider(tmp_path / "n.safetensors", "x", "tiny", random_model)


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_pickle_with_code_is_refused_unrun(random_model, tmp_path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"x": Bomb(tmp_path / "pwned")}))
    torch.save({"x": Bomb(tmp_path / "pwned")}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(SliderError, match=r"holds no LoRA .*Nothing in it was run"):
            import_slider(tmp_path / name, "evil", "tiny", random_model)
    assert not (tmp_path / "pwned").exists()


def test_mutated_pickles_never_escape_as_tracebacks(random_model, tmp_path) -> None:
    torch.save({"lora_unet_conv_in.alpha": torch.tensor([1.0, 2.0])}, tmp_path / "a.pt")
    data, rng = (tmp_path / "a.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (tmp_path / "b.pt").write_bytes(bytes(broken))
        with pytest.raises(SliderError):
            import_slider(tmp_path / "b.pt", "x", "tiny", random_model)


def test_corrupt_and_missing_files(random_model, smile, tmp_path) -> None:
    file = written(smile, "diffusers", tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SliderError, match="got a file that holds no LoRA"):
        import_slider(file, "x", "tiny", random_model)
    with pytest.raises(SliderError, match="which does not exist"):
        import_slider(tmp_path / "none.pt", "x", "tiny", random_model)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(SliderError, match="got a file that holds no LoRA"):
        import_slider(tmp_path / "peft", "x", "tiny", random_model)
