"""The recipe of the tiny bases: eight stages, each a module and its loss.

Reader, text, vae and unet make the base; clip, perceptual and identity are judges; flow makes the
second base, on flow matching, around the same autoencoder and text towers. A stage draws
its batch from a generator keyed by (stage, step): resumed, it continues as if never stopped.

Legend: x_B3HW images in [-1, 1]; z_B4hw scaled latents; ids_BL token ids.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.network import JudgeNet
from bs_ray.tiny import captions, faces, nets
from bs_ray.tiny.stage import (
    Stage,
    from_uint8,
    grid,
    save_text_towers,
    to_uint8,
    write_model_index,
)

STAGES = ("reader", "text", "vae", "unet", "clip", "perceptual", "identity", "flow")


# --- the pictures ------------------------------------------------------------------------------
@dataclass
class World:
    """The rendered pictures: uint8 [N, 3, 64, 64] and their scenes, of three kinds."""

    clean: Tensor
    cluttered: Tensor
    wild: Tensor
    scenes: dict[str, faces.Scene]

    @classmethod
    def load(cls, path: Path, clean: int, cluttered: int, wild: int, seed: int) -> World:
        """The pictures in `path`; they are rendered into it where it does not exist."""
        if not path.exists():
            cls._render(path, {"clean": clean, "cluttered": cluttered, "wild": wild}, seed)
        flat = load_file(path)
        scenes: dict[str, faces.Scene] = {kind: {} for kind in ("clean", "cluttered", "wild")}
        for name, column in flat.items():
            kind, _, attribute = name.partition("/")
            if attribute:
                scenes[kind][attribute] = column
        return cls(flat["clean"], flat["cluttered"], flat["wild"], scenes)

    @staticmethod
    def _render(path: Path, counts: dict[str, int], seed: int) -> None:
        draw: dict[str, Callable[[faces.Scene, int], Tensor]] = {
            "clean": lambda scene, _: faces.render(scene),
            "cluttered": faces.render_on_clutter,
            "wild": faces.render_wild,
        }
        flat: dict[str, Tensor] = {}
        for offset, (kind, count) in enumerate(counts.items()):
            scene = faces.sample_scenes(count, seed + offset)
            flat[kind] = to_uint8(draw[kind](scene, seed + 100 + offset))
            flat |= {f"{kind}/{name}": column for name, column in scene.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(flat, path)

    def batch(self, rng: torch.Generator, counts: dict[str, int]) -> tuple[Tensor, faces.Scene]:
        """Random pictures, `counts` of each kind: x [B, 3, 64, 64] in [-1, 1] and their scene."""
        images, scenes = [], []
        for kind, count in counts.items():
            pool = getattr(self, kind)
            rows = torch.randint(len(pool), (count,), generator=rng)
            images.append(from_uint8(pool[rows]))
            scenes.append({name: column[rows] for name, column in self.scenes[kind].items()})
        return torch.cat(images), {k: torch.cat([s[k] for s in scenes]) for k in scenes[0]}


# --- the stages ----------------------------------------------------------------------------------
class _Regression(Stage):
    """A judge network that reads scene parameters off degraded pictures."""

    outputs: tuple[str, ...]

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        self.net = JudgeNet(list(self.outputs))

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, scene = self.world.batch(rng, {"clean": 48, "cluttered": 16, "wild": 32})
        truth = faces.attribute_matrix(scene, self.outputs)
        error = F.smooth_l1_loss(self.net(_degrade(x, rng)).float(), truth, beta=0.1)
        return {"loss": error}

    def export(self) -> None:
        self.net.save(self.base / "judges" / f"{self.name}.safetensors")


def _degrade(x: Tensor, rng: torch.Generator) -> Tensor:
    """Slight blur and noise on some rows, so that a judge does not rely on single pixels."""
    count = len(x)
    blurred = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    share = torch.rand(count, 1, 1, 1, generator=rng) * (
        torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    )
    noise = torch.randn(x.shape, generator=rng) * 0.06 * torch.rand(count, 1, 1, 1, generator=rng)
    return torch.lerp(x, blurred, share * 0.8) + noise


class ReaderStage(_Regression):
    """Reads the attributes that evaluations report."""

    name, steps, outputs = "reader", 1400, faces.ATTRIBUTES


class PerceptualStage(_Regression):
    """Its features are the perceptual distance, so it must see the whole scene."""

    name, steps, outputs = "perceptual", 700, faces.SCENE


class IdentityStage(Stage):
    """Embeds faces: two pictures of one person lie close, others apart (InfoNCE)."""

    name, steps = "identity", 500
    people, dimension = 3000, 32

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        self.net = JudgeNet([f"d{i}" for i in range(self.dimension)])
        scene = {k: v[: self.people] for k, v in world.scenes["clean"].items()}
        self.first = world.clean[: self.people]
        self.second = to_uint8(faces.render_on_clutter(faces.same_person(scene, 77), 78))

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(self.first), (64,), generator=rng)
        pair = from_uint8(torch.cat([self.first[rows], self.second[rows]]))
        unit = F.normalize(self.net(_degrade(pair, rng)).float(), dim=1)
        logits = unit[:64] @ unit[64:].T / 0.1
        truth = torch.arange(64)
        return {"loss": (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2}

    def export(self) -> None:
        self.net.save(self.base / "judges" / "identity.safetensors")


class TextStage(Stage):
    """Both text towers: every caption must be readable from the states that SDXL takes.

    That is the second tower's projection and both towers' last but one hidden states. With
    captions as short as these it is learned in a minute; a contrastive loss alone needs an hour.
    """

    name, steps = "text", 700

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        words = captions.vocabulary()
        # SDXL pads its first tokenizer with the end token and its second with "!".
        self.tokenizers = [nets.build_tokenizer(words, pad) for pad in ("<|endoftext|>", "!")]
        self.ways = list(captions.slots().values())
        towers = [nets.build_text_encoder(tokenizer) for tokenizer in self.tokenizers]
        heads = [nn.Linear(nets.TEXT_WIDTH, sum(self.ways)) for _ in range(4)]
        self.net = nn.ModuleDict({"towers": nn.ModuleList(towers), "heads": nn.ModuleList(heads)})

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        scene = self.world.scenes["clean"]
        rows = torch.randint(len(scene["age"]), (128,), generator=rng).tolist()
        words = random.Random(int(torch.randint(2**31, (), generator=rng)))
        texts = [captions.caption(scene, row, words, words.random() < 0.2) for row in rows]
        truth = torch.tensor([captions.slot_values(text) for text in texts])
        total = torch.zeros(())
        for index, tower in enumerate(self.net["towers"]):
            ids = nets.tokenize(self.tokenizers[index], texts)
            output = tower(ids, output_hidden_states=True)
            states = (output.text_embeds, output.hidden_states[-2].mean(1))
            for state, head in zip(
                states, self.net["heads"][2 * index : 2 * index + 2], strict=True
            ):
                read = head(state).float().split(self.ways, dim=1)
                for slot, logits in enumerate(read):
                    total = total + F.cross_entropy(logits, truth[:, slot])
        return {"loss": total / (4 * len(self.ways))}

    def export(self) -> None:
        first, second = self.net["towers"]
        save_text_towers(self.base, first, second, self.tokenizers)


class ClipStage(Stage):
    """The CLIP judge: a vision tower learns to agree with the second text tower, which is frozen.

    Contrastive (Radford et al. 2021) with a locked tower (Zhai et al. 2022).
    """

    name, steps, lr = "clip", 300, 1.5e-3

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        self.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer_2")
        text = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2").float()
        self.net = nets.build_clip(self.tokenizer)
        self.net.text_model.load_state_dict(text.text_model.state_dict())
        self.net.text_projection.load_state_dict(text.text_projection.state_dict())
        self.net.text_model.requires_grad_(False)
        self.net.text_projection.requires_grad_(False)

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, scene = self.world.batch(rng, {"clean": 64, "cluttered": 32, "wild": 32})
        words = random.Random(int(torch.randint(2**31, (), generator=rng)))
        texts = [captions.caption(scene, i, words, cluttered=i >= 64) for i in range(len(x))]
        ids = nets.tokenize(self.tokenizer, texts)
        return {"loss": self.net(input_ids=ids, pixel_values=x, return_loss=True).loss.float()}

    def export(self) -> None:
        folder = self.base / "judges" / "clip"
        self.net.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class VaeStage(Stage):
    """The autoencoder: L1, edges, the attribute reader's features, and a little KL."""

    name, steps = "vae", 2200

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        self.net = nets.build_vae()
        self.reader = JudgeNet.load(base / "judges" / "reader.safetensors")
        y = torch.linspace(-1, 1, faces.SIZE)[:, None]
        x = torch.linspace(-1, 1, faces.SIZE)[None, :]
        # The small features of the face weigh more than its surroundings.
        self.weight = 1 + 1.5 * torch.exp(-((x / 0.35) ** 2 + ((y - 0.12) / 0.38) ** 2) / 2)

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, _ = self.world.batch(rng, {"clean": 11, "cluttered": 2, "wild": 3})
        posterior = self.net.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng)
        y = self.net.decode((posterior.mean + posterior.std * noise).to(x.dtype)).sample.float()
        pixels = ((y - x).abs() * self.weight).mean() + 2 * ((y - x) ** 2 * self.weight).mean()
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2))
        seen = zip(self.reader.features(y)[:2], self.reader.features(x)[:2], strict=True)
        features = sum(F.l1_loss(a, b) for a, b in seen)
        read = F.l1_loss(self.reader(y), self.reader(x))
        loss = pixels + 0.5 * edges + 0.05 * features + 0.5 * read + 1e-6 * posterior.kl().mean()
        return {"loss": loss, "mse": ((y - x)[:11] ** 2).mean(), "read": read}

    def export(self) -> None:
        with torch.no_grad():
            x = from_uint8(self.world.clean[:512])
            latents = torch.cat([self.net.encode(part).latent_dist.mean for part in x.split(64)])
        self.net.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
        self.net.half().save_pretrained(self.base / "vae")

    @torch.no_grad()
    def sheet(self) -> Tensor:
        x = from_uint8(torch.cat([self.world.clean[:8], self.world.wild[:8]]))
        y = self.net(x).sample.clamp(-1, 1)
        return grid(torch.cat([x[:8], y[:8], x[8:], y[8:]]), columns=8)


class _DenoiserStage(Stage):
    """A base's denoiser on latents, captions dropped for guidance one time in ten."""

    batch = 64
    model: Any

    def __init__(self, world: World, base: Path):
        super().__init__(world, base)
        self.model = self.load_model(base)
        self.net = self.model.denoiser.requires_grad_(True)
        images = torch.cat([world.clean, world.cluttered])
        with torch.no_grad():
            parts = [self.model.encode(from_uint8(part)) for part in images.split(128)]
        self.latents = torch.cat(parts)
        scenes = (world.scenes["clean"], world.scenes["cluttered"])
        self.scene = {name: torch.cat([s[name] for s in scenes]) for name in faces.SCENE}
        self.first_cluttered = len(world.clean)

    def load_model(self, base: Path) -> Any:
        """The base around a new denoiser."""
        raise NotImplementedError

    def timesteps(self, rng: torch.Generator) -> Tensor:
        """Random timesteps, int64 [batch]."""
        raise NotImplementedError

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(self.latents), (self.batch,), generator=rng)
        words = random.Random(int(torch.randint(2**31, (), generator=rng)))
        texts = [
            ""
            if words.random() < 0.1
            else captions.caption(self.scene, r, words, cluttered=r >= self.first_cluttered)
            for r in rows.tolist()
        ]
        with torch.no_grad():
            condition = self.model.embed(texts)
        z, t = self.latents[rows], self.timesteps(rng)
        noise = torch.randn(z.shape, generator=rng)
        x_t = self.model.prediction.add_noise(z, noise, t)
        truth = self.model.prediction.truth(z, noise, t)
        return {"loss": F.mse_loss(self.model.predict(x_t, t, condition).float(), truth)}

    @torch.no_grad()
    def sheet(self) -> Tensor:
        from bs_ray.models.diffusion import sample_euler

        texts = [
            "a photo of a man, smiling, old, glasses",
            "a photo of a woman, frowning, young, long hair",
            "a photo of a man, chubby, beard, on a blue background",
            "a photo of a woman, slim, smiling, red hair",
        ] * 4
        keys = [f"sheet-{i}" for i in range(len(texts))]
        latents = sample_euler(self.model, texts, keys, seed=0, steps=20, guidance_scale=4.0)
        return grid(self.model.decode(latents).clamp(-1, 1), columns=8)


class UnetStage(_DenoiserStage):
    """The tiny SDXL's UNet: noise prediction."""

    name, steps, lr, ema_decay = "unet", 1400, 8e-4, 0.998

    def load_model(self, base: Path) -> Any:
        from bs_ray.models.sdxl import SDXL

        return SDXL.load(base, unet=nets.build_unet())

    def timesteps(self, rng: torch.Generator) -> Tensor:
        # High noise more often: at 64 px a face stays readable until t is about 800 of SDXL's
        # schedule, and only beyond that does a caption tell anything new.
        return (1000 * torch.rand(self.batch, generator=rng) ** 0.6).long().clamp(max=999)

    def export(self) -> None:
        self.net.half().save_pretrained(self.base / "unet")
        nets.build_scheduler().save_pretrained(self.base / "scheduler")
        write_model_index(self.base)


class FlowStage(_DenoiserStage):
    """The tiny SD3.5's transformer: flow matching over the same autoencoder and text towers."""

    name, steps, lr, ema_decay = "flow", 3600, 1e-3, 0.999

    def load_model(self, base: Path) -> Any:
        from bs_ray.models.sd3 import SD3

        write_flow_parts(base, flow_folder(base))
        return SD3.load(flow_folder(base), transformer=nets.build_transformer())

    def timesteps(self, rng: torch.Generator) -> Tensor:
        # Logit-normal (Esser et al. 2024, Eq 19): the middle is where there is most to learn.
        return (1000 * torch.randn(self.batch, generator=rng).sigmoid()).long().clamp(0, 999)

    def export(self) -> None:
        folder = flow_folder(self.base)
        self.net.half().save_pretrained(folder / "transformer")
        nets.build_flow_scheduler().save_pretrained(folder / "scheduler")
        write_flow_index(folder)


def flow_folder(base: Path) -> Path:
    """The folder of the flow-matching base of the same recipe: `<base>-flow`, beside the first."""
    return base.with_name(base.name + "-flow")


def write_flow_parts(base: Path, folder: Path) -> None:
    """Copy what the flow-matching base shares with the first: autoencoder, text towers, judges."""
    for part in ("text_encoder_2", "tokenizer", "tokenizer_2", "vae", "judges"):
        shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    # SD3's autoencoders also shift their latents; the first tower has a projection there, for
    # which the identity will do: it is not trained, and the transformer learns to read it.
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"shift_factor": 0.0}))
    tower = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder")
    torch.nn.init.eye_(tower.text_projection.weight)
    tower.half().save_pretrained(folder / "text_encoder")


def write_flow_index(folder: Path) -> None:
    """Write the index by which `StableDiffusion3Pipeline.from_pretrained` finds the parts."""
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_untrained_base(base: Path, seed: int = 0) -> None:
    """Write a base of random weights with all its parts, for tests that need no quality."""
    torch.manual_seed(seed)
    scene = faces.sample_scenes(IdentityStage.people, seed)
    blank = to_uint8(torch.rand(8, 3, 64, 64) * 2 - 1)
    world = World(blank, blank, blank, {"clean": scene})
    for stage in (ReaderStage, PerceptualStage, TextStage, ClipStage, VaeStage):
        stage(world, base).export()
    JudgeNet([f"d{i}" for i in range(IdentityStage.dimension)]).save(
        base / "judges" / "identity.safetensors"
    )
    nets.build_unet().half().save_pretrained(base / "unet")
    nets.build_scheduler().save_pretrained(base / "scheduler")
    write_model_index(base)


_STAGES = (
    ReaderStage,
    TextStage,
    VaeStage,
    UnetStage,
    ClipStage,
    PerceptualStage,
    IdentityStage,
    FlowStage,
)


def build_stage(name: str, world: World, base: Path) -> Stage:
    """The stage of that name. Raises ValueError for an unknown one."""
    for stage in _STAGES:
        if stage.name == name:
            return stage(world, base)
    raise ValueError(f"got stage {name!r}; expected one of {', '.join(STAGES)}")


__all__ = ["STAGES", "AttributeReader", "Stage", "World", "build_stage", "grid"]
