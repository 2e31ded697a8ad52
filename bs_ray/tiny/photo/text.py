"""Captions as token ids, and what learns from them: the text towers, and CLIP as a judge."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from bs_ray.judges.network import JUDGE_PX
from bs_ray.tiny import nets as tiny_nets
from bs_ray.tiny.photo import captions
from bs_ray.tiny.photo.album import PhotoStage, degraded
from bs_ray.tiny.photo.readers import completed
from bs_ray.tiny.stage import save_text_towers


class TextStage(PhotoStage):
    """Both text towers, as the tiny world's are made: every caption must be readable from them."""

    name, steps = "photo-text", 1200
    batch = 192

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        words = captions.vocabulary()
        self.tokenizers = [tiny_nets.build_tokenizer(words, pad) for pad in ("<|endoftext|>", "!")]
        self.ways = list(captions.slots().values())
        self.labels = table_of(completed(self.album, base))
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
        truth = torch.tensor([captions.slot_values(text) for text in texts], device=self.device)
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


def table_of(labels: dict[str, Tensor]) -> list[dict[str, float]]:
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
        self.labels = table_of(completed(self.album, base))

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
