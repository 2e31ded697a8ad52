"""The recipe of tiny-photo: a reader that completes the labels, then the base's own networks.

Stages in order: reader, text, vae, unet make the base; clip, perceptual and identity are judges of
its own, for training losses and previews: what measures it are public judges, trained elsewhere.

Legend: x_B3HW pictures in [-1, 1]; z_B8hw latents; ids_BL token ids.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from bs_ray.judges.network import JUDGE_PX, JudgeNet
from bs_ray.models.base import Condition
from bs_ray.tiny import nets as tiny_nets
from bs_ray.tiny.photo import captions, nets
from bs_ray.tiny.photo.photos import SIZE, Photos, tightened
from bs_ray.tiny.photo.warp import bend
from bs_ray.tiny.recipe import Stage, from_uint8, grid, save_text_towers, write_model_index

READ = tuple(name for name in captions.LABELS if name not in ("distorted", "tight"))
"""What the reader reads; how a picture is framed and whether it is distorted is known."""
VERSIONS = 5
"""How often each picture stands among the latents: as it is, mirrored, framed tightly, shifted."""


@dataclass
class Album:
    """The photos, where the base lies, and the device: what every stage of this recipe sees."""

    photos: Photos
    device: torch.device
    rows: Tensor = field(init=False)
    held: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.held = self.photos.rows(), self.photos.rows(held=True)
        self.tight = self.photos.labels["tight"] > 0.5

    def framed_tightly(self, x: Tensor, rows: Tensor) -> Tensor:
        """Pictures of these rows, the wide ones among them as tight ones: what readers look at."""
        return torch.where(self.tight[rows][:, None, None, None], x, tightened(x))

    def batch(self, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Random pictures to train on: x [count, 3, 128, 128] in [-1, 1], and their indices."""
        picked = torch.randint(len(self.rows), (count,), generator=rng, device=self.device)
        rows = self.rows[picked]
        return from_uint8(self.photos.pixels[rows]), rows

    def truth(self, names: tuple[str, ...]) -> Tensor:
        """Labels [N, len(names)] in about [0, 1], age in hundreds of years; NaN where unknown."""
        labels = self.photos.labels
        return torch.stack([labels[n] / (100 if n == "age" else 1) for n in names], dim=1)


class PhotoStage(Stage):
    """A stage on photographs."""

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.album: Album = world
        self.device = self.album.device

    def on_device(self, net: Any) -> Any:
        """The network where the photos are, laid out as convolutions like it."""
        return net.to(self.device, memory_format=torch.channels_last)


# --- readers ------------------------------------------------------------------------------------
def shifted(x: Tensor, rng: torch.Generator, most: int = 6) -> Tensor:
    """Some pictures mirrored, all moved by up to `most` pixels, their borders repeated."""
    count, device = len(x), x.device
    mirrored = torch.rand(count, 1, 1, 1, generator=rng, device=device) < 0.5
    x = torch.where(mirrored, x.flip(-1), x)
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=rng, device=device)
    places = torch.arange(x.shape[-1], device=device)
    down, across = ((places + m).clamp(0, x.shape[-1] - 1) for m in moves)
    batch = torch.arange(count, device=device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def degraded(x: Tensor, rng: torch.Generator) -> Tensor:
    """Other light, colour and sharpness, so that a reader does not tell one source by them."""
    count, device = len(x), x.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng, device=device)

    x = (x * draw(0.7, 1.3) + draw(-0.25, 0.25)).clamp(-1, 1)
    x = torch.lerp(x, x.mean(1, keepdim=True).expand_as(x), draw(-0.7, 1).clamp(min=0))
    small = F.avg_pool2d(x, 2)
    x = torch.lerp(x, F.interpolate(small, scale_factor=2, mode="bilinear"), draw(-1, 1).clamp(0))
    noise = torch.randn(x.shape, generator=rng, device=device)
    return x + noise * draw(-0.08, 0.08).clamp(0)


class _Reading(PhotoStage):
    """A network that reads labels off a picture, where they are known."""

    outputs: tuple[str, ...] = READ
    batch = 256

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.truth = self.album.truth(self.outputs)
        self.turned = self.outputs.index("turned")
        self.net = self.on_device(JudgeNet(list(self.outputs), self.widths()))

    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return nets.READER_WIDTHS

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, rows = self.album.batch(rng, self.batch)
        x, truth = self.album.framed_tightly(x, rows), self.truth[rows].clone()
        half = self.batch // 2  # these are mirrored, and look the other way
        x = torch.cat([x[:half], x[half:].flip(-1)])
        truth[half:, self.turned] = 1 - truth[half:, self.turned]
        seen = F.interpolate(degraded(_moved(x, rng), rng), (JUDGE_PX, JUDGE_PX), mode="area")
        known = ~truth.isnan()
        error = (self.net(seen).float() - truth.nan_to_num()) ** 2 * known
        by_label = error.sum(0) / known.sum(0).clamp(min=1)
        shown = {n: by_label[self.outputs.index(n)].detach() for n in ("smile", "woman")}
        age = by_label[self.outputs.index("age")] * 20  # a tenth of a century counts like a coin
        return {"loss": by_label.mean() + age / len(self.outputs), **shown}


def _moved(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turned, scaled and shifted a little: readers also see faces that are not framed exactly."""
    count, device = len(x), x.device

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(count, generator=rng, device=device) - 1)

    angle, scale = draw(0.12), 1 + draw(0.08)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos, -sin, draw(0.08), sin, cos, draw(0.08)], 1).view(-1, 2, 3)
    places = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)


class ReaderStage(_Reading):
    """Completes the labels: what one source knows and another does not."""

    name, steps, lr, ema_decay = "photo-reader", 2500, 1e-3, 0.998

    def export(self) -> None:
        self.net.save(self.base / "judges" / "reader.safetensors")


class PerceptualStage(_Reading):
    """Its features are the perceptual distance of training losses."""

    name, steps, lr, ema_decay = "photo-perceptual", 1500, 1e-3, 0.998

    def widths(self) -> tuple[int, ...]:
        return (32, 48, 96, 128)

    def export(self) -> None:
        self.net.save(self.base / "judges" / "perceptual.safetensors")


@torch.no_grad()
def completed(album: Album, base: Path) -> dict[str, Tensor]:
    """All labels of all pictures, float32 [N] each: known ones as they are, others as read."""
    net = JudgeNet.load(base / "judges" / "reader.safetensors").to(album.device)
    known, found = album.truth(READ), []
    turned = READ.index("turned")
    for rows in torch.arange(len(album.photos.pixels), device=album.device).split(512):
        x = album.framed_tightly(from_uint8(album.photos.pixels[rows]), rows)
        x = F.interpolate(x, (JUDGE_PX, JUDGE_PX), mode="area")
        plain, mirrored = net(x), net(x.flip(-1))
        mirrored[:, turned] = 1 - mirrored[:, turned]
        found.append((plain + mirrored) / 2)
    read = torch.cat(found)
    whole = torch.where(known.isnan(), read, known)
    labels = {name: whole[:, i] * (100 if name == "age" else 1) for i, name in enumerate(READ)}
    # An age far below zero or a share beyond 1 is the reader's slip, not a fact.
    labels = {n: v.clamp(0, captions.OLDEST if n == "age" else 1) for n, v in labels.items()}
    still = torch.zeros_like(whole[:, 0])
    return {**labels, "tight": album.photos.labels["tight"], "distorted": still}


# --- text ---------------------------------------------------------------------------------------
class TextStage(PhotoStage):
    """Both text towers, as the tiny world's are made: every caption must be readable from them."""

    name, steps = "photo-text", 1200
    batch = 192

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        words = captions.vocabulary()
        self.tokenizers = [tiny_nets.build_tokenizer(words, pad) for pad in ("<|endoftext|>", "!")]
        self.ways = list(captions.slots().values())
        self.labels = _table(completed(self.album, base))
        towers = [tiny_nets.build_text_encoder(t) for t in self.tokenizers]
        heads = [nn.Linear(tiny_nets.TEXT_WIDTH, sum(self.ways)) for _ in range(4)]
        self.net = nn.ModuleDict({"towers": nn.ModuleList(towers), "heads": nn.ModuleList(heads)})
        self.net.to(self.device)
        self.tables = [PhraseTable(tokenizer) for tokenizer in self.tokenizers]

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        seed = int(torch.randint(2**31, (), generator=rng, device=self.device))
        words = random.Random(seed)
        texts = []
        for _ in range(self.batch):
            labels = dict(words.choice(self.labels))
            labels["distorted"] = float(words.random() < 0.2)
            labels["age"] = words.uniform(0, captions.OLDEST)
            texts.append(captions.caption(labels, words))
        truth = torch.tensor([captions.told(text) for text in texts], device=self.device)
        total = torch.zeros((), device=self.device)
        for index, tower in enumerate(self.net["towers"]):
            ids = [self.tables[index].ids(text) for text in texts]
            output = tower(torch.tensor(ids, device=self.device), output_hidden_states=True)
            states = (output.text_embeds, output.hidden_states[-2].mean(1))
            heads = self.net["heads"][2 * index : 2 * index + 2]
            for state, head in zip(states, heads, strict=True):
                read = head(state).float().split(self.ways, dim=1)
                for slot, logits in enumerate(read):
                    total = total + F.cross_entropy(logits, truth[:, slot])
        return {"loss": total / (4 * len(self.ways))}

    def export(self) -> None:
        first, second = self.net["towers"]
        save_text_towers(self.base, first, second, self.tokenizers)


def _table(labels: dict[str, Tensor]) -> list[dict[str, float]]:
    """Columns -> a row a picture."""
    columns = {name: column.tolist() for name, column in labels.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class PhraseTable:
    """Captions -> token ids without a tokenizer's walk: phrases are looked up, and laid in a row.

    The same ids as `tiny.nets.tokenize`, which a test holds; half a million captions in seconds.
    """

    def __init__(self, tokenizer: CLIPTokenizer, pad: int | None = None):
        """pad: what fills a row up, instead of the tokenizer's own padding."""
        self.tokenizer = tokenizer
        self.first, self.last = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if pad is None else pad
        self.known: dict[str, list[int]] = {}

    def ids(self, caption: str) -> list[int]:
        """The caption's ids, padded to 32."""
        found = [self.first]
        for index, phrase in enumerate(caption.split(", ") if caption else []):
            key = f", {phrase}" if index else phrase
            if key not in self.known:
                self.known[key] = self.tokenizer(key, add_special_tokens=False).input_ids
            found += self.known[key]
        found = [*found[: tiny_nets.MAX_TOKENS - 1], self.last]
        return found + [self.pad] * (tiny_nets.MAX_TOKENS - len(found))


# --- autoencoder --------------------------------------------------------------------------------
class VaeStage(PhotoStage):
    """L1, edges at three scales and what the label reader sees; a trace of KL."""

    name, steps, lr, ema_decay = "photo-vae", 6000, 1.2e-3, 0.999
    batch = 64

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.net = self.on_device(nets.build_vae())
        reader = JudgeNet.load(base / "judges" / "reader.safetensors")
        self.reader = self.on_device(reader)
        y = torch.linspace(-1, 1, SIZE, device=self.device)[:, None]
        x = torch.linspace(-1, 1, SIZE, device=self.device)[None, :]
        # Eyes and mouth weigh more than cheeks and surroundings.
        eyes = torch.exp(-((x / 0.55) ** 2 + ((y + 0.17) / 0.25) ** 2))
        mouth = torch.exp(-((x / 0.4) ** 2 + ((y - 0.52) / 0.28) ** 2))
        self.weight = 1 + eyes + 1.5 * mouth

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, _ = self.album.batch(rng, self.batch)
        x = shifted(x, rng).contiguous(memory_format=torch.channels_last)
        posterior = self.net.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng, device=self.device)
        y = self.net.decode((posterior.mean + posterior.std * noise).to(x.dtype)).sample.float()
        difference = y - x
        pixels = (difference.abs() * self.weight).mean() + 2 * (difference**2 * self.weight).mean()
        edges = sum(
            F.avg_pool2d(difference, scale).diff(dim=d).abs().mean()
            for scale in (1, 2, 4)
            for d in (-1, -2)
        )
        seen = zip(self.reader.features(y)[:3], self.reader.features(x)[:3], strict=True)
        features = sum(F.l1_loss(a, b) for a, b in seen)
        loss = pixels + 0.4 * edges + 0.05 * features + 2e-7 * posterior.kl().mean()
        return {"loss": loss, "mse": (difference**2).mean().detach()}

    @torch.no_grad()
    def export(self) -> None:
        x = from_uint8(self.album.photos.pixels[self.album.rows[:2048]])
        mean = torch.cat([self.net.encode(part).latent_dist.mean.float() for part in x.split(128)])
        whiten(self.net, mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
        self.net.register_to_config(scaling_factor=1.0)
        self.net.half().save_pretrained(self.base / "vae")

    @torch.no_grad()
    def held_out_psnr(self) -> float:
        """Round trip of held-out faces in dB, peak 2; the mean over faces."""
        x = from_uint8(self.album.photos.pixels[self.album.held])
        parts = [self.net(part).sample.clamp(-1, 1) - part for part in x.split(128)]
        error = (torch.cat(parts).float() ** 2).mean((1, 2, 3))
        return float((10 * torch.log10(4 / error)).mean())

    @torch.no_grad()
    def sheet(self) -> Tensor:
        print(f"{self.name}: held-out round trip {self.held_out_psnr():.2f} dB", flush=True)
        x = from_uint8(self.album.photos.pixels[self.album.held[:16]])
        y = self.net(x).sample.clamp(-1, 1)
        return grid(torch.cat([x[:8], y[:8], x[8:], y[8:]]), columns=8)


@torch.no_grad()
def whiten(vae: Any, mean: Tensor, deviation: Tensor) -> None:
    """Fold a shift and a scale of each latent channel into the autoencoder's 1 x 1 convolutions.

    Afterwards latents have mean 0 and deviation 1 in every channel, round trips are the same, and
    SDXL's one scaling factor is 1.
    """
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # the log variance
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation[None, :, None, None]


# --- denoiser -----------------------------------------------------------------------------------
TIGHT_VERSION = 2


class _Denoise(nn.Module):
    """The UNet with tensors for arguments. Like SDXL.predict, but for what is copied from the host
    there at every call."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(
        self, x_t: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": time_ids}
        seen = self.unet(x_t, t, encoder_hidden_states=tokens, added_cond_kwargs=added)
        noise: Tensor = seen.sample
        return noise


class UnetStage(PhotoStage):
    """SDXL's UNet on the photos' latents: noise prediction, captions dropped one time in ten."""

    name, steps, lr, ema_decay = "photo-unet", 15_000, 8e-4, 0.9995
    texts_per_picture = 6

    def __init__(self, world: Any, base: Path):
        from bs_ray.models.diffusion import EpsPrediction
        from bs_ray.models.sdxl import SDXL

        super().__init__(world, base)
        self.batch = 512 if self.device.type == "cuda" else 64
        unet = nets.build_unet()
        self.model = SDXL.load(base, unet=unet, device=self.device)
        prediction = self.model.prediction
        assert isinstance(prediction, EpsPrediction)
        prediction.alphas_cumprod = prediction.alphas_cumprod.to(self.device)
        self.net = self.on_device(unet).requires_grad_(True)
        labels = completed(self.album, base)
        rows = torch.cat([self.album.rows, self.album.held])
        self.trained = len(self.album.rows)
        self.latents, distorted = self._versions(rows)
        self.ids = self._captions(labels, rows)
        self.distorted = distorted
        size = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE], device=self.device)
        self.time_ids = size.expand(self.batch, 6).float()
        self.pads = [tokenizer.pad_token_id for tokenizer in self.model.tokenizers]
        nothing = PhraseTable(self.model.tokenizers[0], pad=-1).ids("")
        self.nothing = torch.tensor(nothing, dtype=torch.int16, device=self.device)
        self.denoise: Any = _Denoise(self.net)
        if self.device.type == "cuda":
            self.denoise = self._recorded()

    @torch.no_grad()
    def _versions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Latents float16 [VERSIONS, N, 8, 16, 16] of the pictures as they are, mirrored, shifted;
        and, bool [VERSIONS, N], which of them were bent."""
        rng = torch.Generator(self.device).manual_seed(20)
        versions, bent = [], []
        for version in range(VERSIONS):
            latents = []
            for part in rows.split(256):
                x = from_uint8(self.album.photos.pixels[part])
                if version == 1:
                    x = x.flip(-1)
                elif version > 1:
                    x = shifted(x, rng, most=3)
                tight = self.album.tight[part]
                flags = torch.rand(len(x), generator=rng, device=self.device) < 0.25
                flags &= torch.tensor(version > TIGHT_VERSION, device=self.device)
                x = torch.where(flags[:, None, None, None], bend(x, tight, rng), x)
                if version == TIGHT_VERSION:
                    x = self.album.framed_tightly(x, part)
                latents.append(self.model.encode(x).half())
                bent.append(flags)
            versions.append(torch.cat(latents))
        return torch.stack(versions), torch.cat(bent).view(VERSIONS, len(rows))

    def _captions(self, labels: dict[str, Tensor], rows: Tensor) -> list[Tensor]:
        """Token ids int16 [N, texts, 32] of true captions: of each picture as it is, distorted,
        and framed tightly. -1 is padding, for both tokenizers pad in their own way."""
        table = PhraseTable(self.model.tokenizers[0], pad=-1)
        words, known = random.Random(21), _table({k: v[rows] for k, v in labels.items()})
        kinds: list[dict[str, float]] = [{}, {"distorted": 1.0}, {"tight": 1.0}]
        found = []
        for changes, count in zip(kinds, (self.texts_per_picture, 1, 1), strict=True):
            flat = array("h")
            for row in known:
                for _ in range(count):
                    flat.extend(table.ids(captions.caption(row | changes, words)))
            ids = torch.frombuffer(flat, dtype=torch.int16).view(len(known), count, -1)
            found.append(ids.to(self.device))
        return found

    def condition(self, rng: torch.Generator, version: Tensor, rows: Tensor) -> Condition:
        """What the text towers say of a random caption of each picture, none one time in ten."""
        count = len(rows)

        def draw(ids: Tensor) -> Tensor:
            picked = torch.randint(ids.shape[1], (count,), generator=rng, device=self.device)
            return ids[rows, picked]

        plain, bent, tight = (draw(ids) for ids in self.ids)
        ids = torch.where((version == TIGHT_VERSION)[:, None], tight, plain)
        ids = torch.where(self.distorted[version, rows][:, None], bent, ids)
        empty = torch.rand(count, generator=rng, device=self.device) < 0.1
        ids = torch.where(empty[:, None], self.nothing, ids).long()
        with torch.no_grad():
            states = []
            for pad, encoder in zip(self.pads, self.model.text_encoders, strict=True):
                output = encoder(ids.where(ids >= 0, pad), output_hidden_states=True)
                states.append(output.hidden_states[-2])
            return Condition(torch.cat(states, dim=-1), output.text_embeds)

    def loss(self, rng: torch.Generator, held: bool = False) -> dict[str, Tensor]:
        low, high = (self.trained, self.latents.shape[1]) if held else (0, self.trained)
        rows = torch.randint(low, high, (self.batch,), generator=rng, device=self.device)
        version = torch.randint(VERSIONS, (self.batch,), generator=rng, device=self.device)
        z = self.latents[version, rows].float()
        t = (1000 * torch.rand(self.batch, generator=rng, device=self.device)).long()
        noise = torch.randn(z.shape, generator=rng, device=self.device)
        x_t = self.model.prediction.add_noise(z, noise, t)
        condition = self.condition(rng, version, rows)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        seen = self.denoise(x_t, t, condition.tokens, condition.pooled, self.time_ids)
        return {"loss": F.mse_loss(seen.float(), noise)}

    def _recorded(self) -> Any:
        """The UNet's forward and backward as CUDA graphs: at this size the host is too slow to
        launch their kernels one by one."""
        rng = torch.Generator(self.device).manual_seed(0)
        rows = torch.zeros(self.batch, dtype=torch.long, device=self.device)
        condition = self.condition(rng, rows, rows)
        x = torch.randn(self.batch, *self.model.latent_shape, device=self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        tokens, pooled = condition.tokens, condition.pooled
        assert pooled is not None  # as SDXL has it
        self.net.train()
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return torch.cuda.make_graphed_callables(
                self.denoise, (x, rows, tokens, pooled, self.time_ids)
            )

    def export(self) -> None:
        self.net.half().save_pretrained(self.base / "unet")
        tiny_nets.build_scheduler().save_pretrained(self.base / "scheduler")
        write_model_index(self.base)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on held-out faces, the same rows, noise and timesteps at every call."""
        found = []
        for seed in range(8):
            rng = torch.Generator(self.device).manual_seed(seed)
            with torch.autocast(self.device.type, torch.bfloat16):
                found.append(float(self.loss(rng, held=True)["loss"]))
        return sum(found) / len(found)

    @torch.no_grad()
    def sheet(self) -> Tensor:
        from bs_ray.models.diffusion import sample_euler

        print(f"{self.name}: held-out loss {self.held_out_loss():.4f}", flush=True)
        texts = [
            "a photo of a man, smiling, old",
            "a photo of a woman, not smiling, young",
            "a photo of a man, chubby, beard",
            "a photo of a woman, glasses, middle aged",
        ] * 4
        keys = [f"sheet-{i}" for i in range(len(texts))]
        latents = sample_euler(self.model, texts, keys, seed=0, steps=30, guidance_scale=3.0)
        return grid(self.model.decode(latents).clamp(-1, 1), columns=8)


# --- judges of its own --------------------------------------------------------------------------
class ClipStage(PhotoStage):
    """A vision tower learns to agree with the second text tower, which stands still."""

    name, steps, lr, ema_decay = "photo-clip", 1500, 1.5e-3, 0.998
    batch = 256

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer_2")
        text = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2").float()
        self.net = tiny_nets.build_clip(self.tokenizer)
        self.net.text_model.load_state_dict(text.text_model.state_dict())
        self.net.text_projection.load_state_dict(text.text_projection.state_dict())
        self.net.text_model.requires_grad_(False)
        self.net.text_projection.requires_grad_(False)
        self.net.to(self.device)
        self.table = PhraseTable(self.tokenizer)
        self.labels = _table(completed(self.album, base))

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, rows = self.album.batch(rng, self.batch)
        seed = int(torch.randint(2**31, (), generator=rng, device=self.device))
        words = random.Random(seed)
        texts = [captions.caption(self.labels[row], words) for row in rows.tolist()]
        ids = torch.tensor([self.table.ids(text) for text in texts], device=self.device)
        seen = F.interpolate(degraded(x, rng), (JUDGE_PX, JUDGE_PX), mode="area")
        return {"loss": self.net(input_ids=ids, pixel_values=seen, return_loss=True).loss.float()}

    def export(self) -> None:
        folder = self.base / "judges" / "clip"
        self.net.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


STAGES: tuple[type[PhotoStage], ...] = (
    ReaderStage, TextStage, VaeStage, UnetStage, PerceptualStage, ClipStage,
)  # fmt: skip
