"""tiny-photo's UNet, trained on latents of the photos and of their variations."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bs_ray.models.base import Condition
from bs_ray.tiny import nets as tiny_nets
from bs_ray.tiny.photo import captions, nets
from bs_ray.tiny.photo.album import PhotoStage, shifted
from bs_ray.tiny.photo.photos import SIZE
from bs_ray.tiny.photo.readers import completed
from bs_ray.tiny.photo.text import PhraseTable, table_of
from bs_ray.tiny.photo.warp import bend
from bs_ray.tiny.stage import from_uint8, grid, write_model_index

VERSIONS = 5
"""How often each picture stands among the latents: as it is, mirrored, framed tightly, shifted."""


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
        words, known = random.Random(21), table_of({k: v[rows] for k, v in labels.items()})
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
        assert pooled is not None
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
