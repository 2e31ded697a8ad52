"""The Editor: what batch, serve, evaluate and the shell share, so offline equals online.

A photo is any uint8 RGB array [H, W, 3]. It is worked on at the base's own scale and gets back
only the difference (residual output): pixels_out = pixels_in + up(decode(x0 + d) - decode(x0)).
So strength 0 returns the photo bit for bit, and what is not edited stays sharp at any size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.displacement import displace
from bs_ray.editing.sdedit import sdedit
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.artifact import Slider, SliderError
from bs_ray.sliders.bank import SliderBank


@dataclass(frozen=True)
class Edit:
    """One photo and what to do with it, each set of strengths giving one output."""

    key: str
    """Names the photo's noise: its content hash, so that batch and serve agree."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    mixes: Sequence[dict[str, float]]
    """Slider name -> signed strength, one dict per output."""
    seed: int = 0


class Editor:
    """A base with some sliders resident. Not thread-safe: one Editor, one forward at a time."""

    def __init__(self, model: DiffusionModel, sliders: Sequence[Slider], settings: EditorSettings):
        """Raises SliderError where a slider was trained on another base."""
        for slider in sliders:
            slider.check_base(model.base_id)
        self.model, self.settings = model, settings
        self.sliders = {slider.card.name: slider for slider in sliders}
        self.bank = SliderBank.of(sliders).to(model.device)
        self.bank.attach(model.denoiser)
        prompt = settings.prompt if settings.prompt is not None else sliders[0].card.target
        self._condition = model.embed([prompt])

    def close(self) -> None:
        """Detach the sliders: the base is bit for bit itself again."""
        self.bank.detach()

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, strengths: Tensor) -> Tensor:
        """The denoiser's prediction with each row's sliders at `strengths` [B, sliders]."""
        with self.bank.strengths(strengths):
            return self.model.predict(x_t, t, condition)

    def strengths(self, mixes: Sequence[dict[str, float]]) -> Tensor:
        """Mixes as a tensor [len(mixes), sliders]. Raises SliderError for an unknown slider."""
        table = torch.zeros(len(mixes), len(self.bank.names), device=self.model.device)
        for row, mix in enumerate(mixes):
            for name, strength in mix.items():
                if name not in self.sliders:
                    raise SliderError(
                        f"slider: got {name!r}; expected one of {', '.join(self.bank.names)}"
                    )
                if not np.isfinite(strength):
                    raise SliderError(f"slider {name}: got strength {strength}; expected a number")
                table[row, self.bank.names.index(name)] = strength
        return table

    @torch.no_grad()
    def edit(self, edits: Sequence[Edit]) -> list[list[np.ndarray]]:
        """Every edit's outputs, in order: float32 RGB [H, W, 3] in [0, 255], the photo's own size.

        Photos of any sizes may be mixed: those that share a working size share forward passes.
        """
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, edit in enumerate(edits):
            buckets[self.working_size(*edit.pixels.shape[:2])].append(index)
        outputs: dict[int, list[np.ndarray]] = {}
        for size, indices in buckets.items():
            done = self._edit_bucket([edits[i] for i in indices], size)
            outputs |= dict(zip(indices, done, strict=True))
        return [outputs[index] for index in range(len(edits))]

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Where a photo of this size is edited: its aspect at the base's area, in multiples."""
        side = self.settings.working_px or self.model.native_px
        unit = self.model.multiple_px
        aspect = min(max(height / width, 0.25), 4.0)
        tall, wide = side * aspect**0.5, side / aspect**0.5
        return max(unit, round(tall / unit) * unit), max(unit, round(wide / unit) * unit)

    def _edit_bucket(self, edits: Sequence[Edit], size: tuple[int, int]) -> list[list[np.ndarray]]:
        """All edits of one working size in one run of the method."""
        strengths = self.strengths([mix for edit in edits for mix in edit.mixes])
        source_of = torch.tensor([i for i, edit in enumerate(edits) for _ in edit.mixes])
        # A row whose strengths are all 0 is the photo itself: nothing to compute.
        moving = strengths.abs().amax(1) > 0
        residuals: dict[int, Tensor] = {}
        if self.settings.method == "sdedit":
            moving = torch.ones_like(moving)
        if moving.any():
            rows = moving.nonzero()[:, 0]
            residual = self._residual(edits, size, strengths[rows], source_of[rows.cpu()])
            residuals = dict(zip(rows.tolist(), residual, strict=True))
        flat = [
            _add_residual(edits[source].pixels, residuals.get(row))
            for row, source in enumerate(source_of.tolist())
        ]
        ends = np.cumsum([len(edit.mixes) for edit in edits])
        return [flat[end - len(edit.mixes) : end] for end, edit in zip(ends, edits, strict=True)]

    def _residual(
        self, edits: Sequence[Edit], size: tuple[int, int], strengths: Tensor, source_of: Tensor
    ) -> Tensor:
        """decode(edited) - decode(source), [T, 3, h, w] in units of [-1, 1]."""
        model, settings = self.model, self.settings
        used = source_of.unique()
        source_of = torch.searchsorted(used, source_of).to(model.device)
        edits = [edits[i] for i in used.tolist()]
        photos = torch.cat([_working_copy(edit.pixels, size) for edit in edits]).to(model.device)
        x0 = model.encode(photos)
        seeds, keys = [e.seed for e in edits], [e.key for e in edits]
        condition = self._condition.rows(torch.zeros(len(edits), dtype=torch.int64))
        if settings.method == "sdedit":
            noise = batch_noise(x0.shape[1:], seeds, keys, 0).to(x0.device)
            edited = sdedit(
                self.predict, model.prediction, x0[source_of], noise[source_of],
                condition.rows(source_of), strengths,
                steps=settings.steps, strength=settings.strength,
            )  # fmt: skip
        else:
            d = displace(
                self.predict, model.prediction, x0, condition, strengths, source_of,
                seeds=seeds, keys=keys, steps=settings.steps, strength=settings.strength,
            )  # fmt: skip
            edited = x0[source_of] + d
        return (model.decode(edited) - model.decode(x0)[source_of]).cpu()


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float [0, 255] -> uint8, rounded."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _working_copy(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, *size] in [-1, 1]."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)


def _add_residual(pixels: np.ndarray, residual: Tensor | None) -> np.ndarray:
    photo = np.asarray(pixels, dtype=np.float32)
    if residual is None:
        return photo
    if residual.shape[-2:] != photo.shape[:2]:
        residual = F.interpolate(residual[None], photo.shape[:2], mode="bicubic")[0]
    return np.clip(photo + residual.permute(1, 2, 0).numpy() * 127.5, 0, 255)
