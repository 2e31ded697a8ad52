"""One base in every layout that people have; the writers of tests alone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bs_ray.storage import Store

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_META = {"format": "pt"}


def write_whole(base: Path, folder: Path) -> None:
    """The base in float32, its numbers being no float16's."""
    shutil.copytree(base, folder)
    for number, part in enumerate(NETWORKS):
        generator = torch.Generator().manual_seed(number)
        [file] = (folder / part).glob("*.safetensors")
        state = {
            name: t.float() * (1 + 1e-3 * torch.rand(t.shape, generator=generator))
            for name, t in load_file(file).items()
        }
        save_file(state, file, _META)


def _weights(folder: Path) -> list[Path]:
    return [next((folder / part).glob("*.safetensors")) for part in NETWORKS]


def add_variant(folder: Path) -> None:
    """The fp16 variant beside the files that are there."""
    for file in _weights(folder):
        state = {name: t.half() for name, t in load_file(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"), _META)


def leave_variant(folder: Path) -> None:
    files = _weights(folder)
    add_variant(folder)
    for file in files:
        file.unlink()


def halve(folder: Path) -> None:
    for file in _weights(folder):
        save_file({name: t.half() for name, t in load_file(file).items()}, file, _META)


def halve_to_bfloat16(folder: Path) -> None:
    """Rounded twice, as by tools that pass on what others published."""
    for file in _weights(folder):
        state = {name: t.half().bfloat16() for name, t in load_file(file).items()}
        save_file(state, file, _META)


def shard(folder: Path, variant: str = "") -> None:
    """Three shards and an index for each network, named as diffusers and transformers do."""
    for file in _weights(folder):
        state = load_file(file)
        file.unlink()
        if variant:
            state = {name: t.half() for name, t in state.items()}
        names, places = list(state), {}
        for k in range(3):
            tag = f".{variant}" if variant else ""
            shard_name = f"{file.stem}{tag}-0000{k + 1}-of-00003.safetensors"
            save_file(
                {name: state[name] for name in names[k::3]}, file.with_name(shard_name), _META
            )
            places |= dict.fromkeys(names[k::3], shard_name)
        index = f"{file.name}.index.{variant}.json" if variant else f"{file.name}.index.json"
        about = {"metadata": {"total_size": 1}, "weight_map": places}
        file.with_name(index).write_text(json.dumps(about))


def older_names(folder: Path) -> None:
    """CLIP's first tower as transformers 4 saved it, as the published files are."""
    file = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name}": t for name, t in load_file(file).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(state, file, _META)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "fp32": lambda folder: None,
    "fp16 variant": leave_variant,
    "both": add_variant,
    "fp16": halve,
    "bf16 via fp16": halve_to_bfloat16,
    "sharded": shard,
    "sharded variant": lambda folder: shard(folder, "fp16"),
    "older names": older_names,
}
"""What becomes of a folder as `write_whole` makes it."""
REPO = "studio/portraits-xl"


def in_layout(name: str, whole: Path, place: Path, bucket: Store | None = None) -> str:
    """What a job's `base` is for a base in that layout.

    whole: the base as `write_whole` makes it. place: an empty folder; `place / "hub"` becomes the
    hub's cache. bucket: for "s3".
    """
    folder = place / name.replace(" ", "-")
    if name in LAYOUTS:
        LAYOUTS[name](shutil.copytree(whole, folder))
        return str(folder)
    if name in ("snapshot", "hub"):
        leave_variant(shutil.copytree(whole, folder))
        found = snapshot(folder, place / "hub", REPO)
        return str(found) if name == "snapshot" else REPO
    if name == "single file":
        write_single_file(whole, file := place / "portraits.safetensors")
        copy_settings(whole, file.with_suffix(""))
        return str(file)
    assert name == "s3" and bucket
    upload(whole, bucket)
    return bucket.uri


def copy_settings(folder: Path, target: Path) -> None:
    """Everything but weights."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "judges"))


def upload(folder: Path, bucket: Store) -> None:
    for file in filter(Path.is_file, folder.rglob("*")):
        bucket.write(file.relative_to(folder).as_posix(), file.read_bytes())


def snapshot(folder: Path, cache: Path, repo: str, commit: str = "c" * 40) -> Path:
    """The folder as a snapshot in a hub's cache: links to blobs."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    place = root / "snapshots" / commit
    for file in filter(Path.is_file, sorted(folder.rglob("*"))):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = place / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return place


# --- one file ------------------------------------------------------------------------------------
def write_single_file(folder: Path, path: Path) -> None:
    """The original code's names: what diffusers' conversion reads, the other way round."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    state: dict[str, Tensor] = {}
    for part, name_of, prefix in (
        ("unet", lambda n: _unet(n, unet["layers_per_block"] + 1), "model.diffusion_model."),
        ("vae", lambda n: _vae(n, len(vae["block_out_channels"])), "first_stage_model."),
    ):
        [file] = (folder / part).glob("*.safetensors")
        state |= {prefix + name_of(name): t for name, t in load_file(file).items()}
    for name, t in load_file(folder / "text_encoder" / "model.safetensors").items():
        plain = name.removeprefix("text_model.")
        state[f"conditioner.embedders.0.transformer.text_model.{plain}"] = t
    second = load_file(folder / "text_encoder_2" / "model.safetensors")
    state |= {f"conditioner.embedders.1.model.{n}": t for n, t in _open_clip(second).items()}
    state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    save_file({name: t.contiguous() for name, t in state.items()}, path)


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet(name: str, each: int) -> str:
    """each: input blocks of a level, its downsampler included."""
    stem, _, end = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{end}"
    kind, *rest = name.split(".")
    if kind == "mid_block":
        part, number, *inside = rest
        block = "middle_block." + ("1" if part == "attentions" else str(2 * int(number)))
        return f"{block}.{_inside(part, inside)}"
    level, part, number, *inside = rest
    place = int(level) * each + int(number)
    if part == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * each}.0.op.{inside[-1]}"
    if part == "upsamplers":
        behind = 2 if level != "2" else 1
        return f"output_blocks.{(int(level) + 1) * each - 1}.{behind}.conv.{inside[-1]}"
    blocks = f"input_blocks.{place + 1}" if kind == "down_blocks" else f"output_blocks.{place}"
    return f"{blocks}.{0 if part == 'resnets' else 1}.{_inside(part, inside)}"


def _inside(part: str, inside: list[str]) -> str:
    return ".".join(
        [_RESNET.get(inside[0], inside[0]) if part == "resnets" else inside[0], *inside[1:]]
    )


def _vae(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    for k in range(levels):
        name = name.replace(f"up_blocks.{k}.resnets", f"up.{levels - 1 - k}.block")
        name = name.replace(f"up_blocks.{k}.upsamplers.0", f"up.{levels - 1 - k}.upsample")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    plain = {name.removeprefix("text_model."): t for name, t in state.items()}
    for name, t in plain.items():
        if name == "text_projection.weight":
            found["text_projection"] = t.T
        elif name.startswith("embeddings.token"):
            found["token_embedding.weight"] = t
        elif name.startswith("embeddings.position"):
            found["positional_embedding"] = t
        elif name.startswith("final_layer_norm"):
            found[name.replace("final_layer_norm", "ln_final")] = t
        elif ".q_proj." in name:
            kind = name.rpartition(".")[2]
            whole = [plain[name.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
            stem = name.partition(".self_attn.")[0].replace("encoder.layers.", "resblocks.")
            found[f"transformer.{stem}.attn.in_proj_{kind}"] = torch.cat(whole)
        elif ".k_proj." not in name and ".v_proj." not in name:
            for new, old in _NAMES.items():
                name = name.replace(new, old)
            found[f"transformer.{name}"] = t
    return found


_NAMES = {
    "encoder.layers.": "resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn": ".attn",
}
