"""The Editor: what batch, serve, evaluate and the shell share, so offline equals online.

A photo is any uint8 RGB array [H, W, 3]. It is worked on at the base's own scale and gets back
only the difference (residual output): pixels_out = pixels_in + up(decode(x0 + d) - decode(x0)).
So strength 0 returns the photo bit for bit, and what is not edited stays sharp at any size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods import METHODS
from bs_ray.editing.run import EditGenerator, EditRun, run_alone
from bs_ray.images.pixels import images_of
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.resident import Resident
from bs_ray.sliders.slider import Slider, SliderError


class EditError(ValueError):
    """An edit that cannot be made; the message says got, expected and what to do."""


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
    mask: np.ndarray | None = None
    """float32 [H, W] in [0, 1]: where the photo may change; everywhere without one."""
    settings: EditorSettings | None = None
    """How to edit this one; the Editor's own where left out."""


@dataclass(frozen=True)
class Edited:
    """One output."""

    pixels: np.ndarray
    """float32 RGB [H, W, 3] in [0, 255], the photo's own size."""
    notes: tuple[str, ...] = ()
    """What its asker should know, such as a strength beyond the slider's usable range."""
    measured: dict[str, float] = field(default_factory=dict)
    """What a quality gate found: `identity`, `effect`."""


Outcome = list[Edited] | EditError | SliderError
"""What became of one Edit."""


def outputs_of(outcome: Outcome) -> list[Edited]:
    """The outputs; raises the error where there is one."""
    if isinstance(outcome, list):
        return outcome
    raise outcome


class PhotoEditRun(EditRun):
    """Edits of one working size and method under way."""

    def __init__(
        self,
        model: DiffusionModel,
        edits: Sequence[Edit],
        sliders: Sequence[Slider],
        moving: Sequence[int],
        work: EditContext,
        steps: EditGenerator,
    ):
        """moving: which of all the edits' outputs `work` has as rows; the others stay."""
        super().__init__(steps, sliders)
        self._model, self.edits = model, edits
        self._moving, self._work = moving, work
        self._before: Tensor | None = None

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> list[list[np.ndarray]]:
        """Every edit's outputs for these edited latents, float32 [H, W, 3] in [0, 255]."""
        of: dict[int, Tensor] = {}
        if self._moving:
            if self._before is None:
                self._before = self._model.decode(self._work.x0)
            residual = (self._model.decode(latents) - self._before[self._work.source_of]).cpu()
            of = dict(zip(self._moving, residual, strict=True))
        places = iter(range(sum(len(edit.mixes) for edit in self.edits)))
        return [[_changed(edit, of.get(next(places))) for _ in edit.mixes] for edit in self.edits]


class Editor:
    """A base and its sliders, `resident_sliders` of them in the bank at once.

    Not thread-safe: one Editor, one forward at a time.
    """

    def __init__(
        self,
        model: DiffusionModel,
        sliders: Sequence[Slider],
        settings: EditorSettings,
        *,
        slots: int | None = None,
        rank: int = 1,
    ):
        """slots, rank: room for sliders that are yet to come into `sliders`.

        Raises SliderError where a slider was trained on another base.
        """
        for slider in sliders:
            slider.check_base(model.base_id)
        self.model, self.settings = model, settings
        self.sliders = {slider.card.name: slider for slider in sliders}
        """What mixes may name."""
        slots = slots or min(len(sliders), settings.resident_sliders)
        layers = [layer for slider in sliders for layer in slider.factors]
        if slots > len(sliders):
            layers += model.slider_targets()
        rank = max([rank, *(slider.card.rank for slider in sliders)])
        self._resident = Resident(model, slots, rank, list(dict.fromkeys(layers)))
        self.bank = self._resident.bank
        self.bank.attach(model.denoiser)
        prompt = settings.prompt if settings.prompt is not None else sliders[0].card.target
        self._condition, self._empty = model.embed([prompt]), model.embed([""])
        self.evaluations = 0
        """Rows that the denoiser has seen; one that is differentiated counts three times."""

    def close(self) -> None:
        """Detach the sliders: the base is bit for bit itself again."""
        self.bank.detach()

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, strengths: Tensor) -> Tensor:
        """The denoiser's prediction with each row's sliders at `strengths` [B, sliders]."""
        self.evaluations += len(x_t) * (3 if torch.is_grad_enabled() else 1)
        with self.bank.strengths(strengths):
            return self.model.predict(x_t, t, condition)

    def strengths(self, mixes: Sequence[dict[str, float]], beside: Sequence[Slider] = ()) -> Tensor:
        """Mixes as LoRA scales [len(mixes), slots], for their sliders, now in the bank.

        beside: sliders that stay in the bank, for edits under way use them. Raises SliderError for
        an unknown slider, a strength that its slider refuses, or more sliders than slots.
        """
        scales, moving = [self._scales(mix, self.sliders) for mix in mixes], self.moved(mixes)
        used = self._resident.use([*moving.values(), *beside])
        slots = dict(zip(moving, used, strict=False))
        table = torch.zeros(len(mixes), len(self.bank.names), device=self.model.device)
        for row, mix in enumerate(scales):
            for name, scale in mix.items():
                if scale:
                    table[row, slots[name]] = scale
        return table

    def _scales(self, mix: dict[str, float], sliders: Mapping[str, Slider]) -> dict[str, float]:
        if unknown := [name for name in mix if name not in sliders]:
            raise SliderError(f"slider: got {unknown[0]!r}; expected one of {', '.join(sliders)}")
        calibrated = self.settings.calibrated
        return {n: sliders[n].card.scale_of(s, calibrated) for n, s in mix.items()}

    def moved(self, mixes: Sequence[dict[str, float]]) -> dict[str, Slider]:
        """The sliders that any of the mixes moves, in order."""
        return {name: self.sliders[name] for name in _moving(mixes)}

    def notes(self, mix: dict[str, float]) -> tuple[str, ...]:
        """Which strengths of a mix are beyond their slider's usable range."""
        found = (self.sliders[n].card.beyond(s, self.settings.calibrated) for n, s in mix.items())
        return tuple(note for note in found if note)

    def check(self, edit: Edit, sliders: Mapping[str, Slider] | None = None) -> None:
        """Raises EditError for pixels that are none, SliderError as `strengths` does.

        sliders: those that mixes may name once it is begun; the Editor's own by default.
        """
        pixels = edit.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise EditError(
                f"photo {edit.key}: got {pixels.dtype} {list(pixels.shape)}; expected uint8 RGB "
                "[height, width, 3]. Decode it with bs_ray.images.decode"
            )
        if edit.mask is not None and edit.mask.shape != pixels.shape[:2]:
            raise EditError(
                f"photo {edit.key}: got a mask {list(edit.mask.shape)}; expected the photo's size "
                f"{list(pixels.shape[:2])}"
            )
        for mix in edit.mixes:
            self._scales(mix, self.sliders if sliders is None else sliders)
        if (count := len(_moving(edit.mixes))) > (slots := len(self.bank.names)):
            raise EditError(
                f"photo {edit.key}: got {count} sliders; expected at most {slots} at once. "
                "Raise editor.resident_sliders"
            )

    @torch.no_grad()
    def edit(self, edits: Sequence[Edit]) -> list[Outcome]:
        """Every edit's outputs, in order, or what is wrong with that edit alone.

        Photos of any sizes may be mixed: those that share a working size share forward passes.
        """
        buckets: dict[Any, list[int]] = defaultdict(list)
        outcomes: dict[int, Outcome] = {}
        for index, edit in enumerate(edits):
            try:
                self.check(edit)
            except (EditError, SliderError) as error:
                outcomes[index] = error
            else:
                buckets[self.working_size(*edit.pixels.shape[:2]), edit.settings].append(index)
        for bucket in buckets.values():
            for indices in self._groups(edits, bucket):
                run = self.begin([edits[i] for i in indices])
                run_alone(run, self.predict)
                outcomes |= dict(zip(indices, self.finish(run), strict=True))
        return [outcomes[index] for index in range(len(edits))]

    @torch.no_grad()
    def begin(self, edits: Sequence[Edit], beside: Sequence[Slider] = ()) -> PhotoEditRun:
        """Edits that passed `check`, of one working size and settings, before their first step.

        beside: as in `strengths`, which says what is raised.
        """
        mixes = [mix for edit in edits for mix in edit.mixes]
        strengths = self.strengths(mixes, beside)
        source_of = torch.tensor([i for i, edit in enumerate(edits) for _ in edit.mixes])
        settings = edits[0].settings or self.settings
        # Displacement leaves a photo without strengths where it is: nothing to compute. The
        # baselines are measured as they are.
        moving = (strengths.abs().amax(1) > 0).cpu()
        if settings.method != "displacement":
            moving = torch.ones_like(moving)
        rows = moving.nonzero()[:, 0]
        work = self._work(edits, strengths[rows], source_of[rows])
        steps = METHODS[settings.method](work, settings) if len(rows) else _nothing(work)
        sliders = list(self.moved(mixes).values())
        return PhotoEditRun(self.model, edits, sliders, rows.tolist(), work, steps)

    def finish(self, run: PhotoEditRun) -> list[list[Edited]]:
        """The outputs of edits that have no query left."""
        assert run.latents is not None
        found = run.pixels(run.latents)
        return [
            [Edited(p, self.notes(mix)) for p, mix in zip(pixels, edit.mixes, strict=True)]
            for pixels, edit in zip(found, run.edits, strict=True)
        ]

    def _groups(self, edits: Sequence[Edit], bucket: list[int]) -> list[list[int]]:
        """The bucket in its order, cut where the sliders of a group no longer fit the bank."""
        groups: list[list[int]] = []
        together: set[str] = set()
        for index in bucket:
            names = set(_moving(edits[index].mixes))
            if not groups or len(together | names) > len(self.bank.names):
                groups.append([])
                together = set()
            groups[-1].append(index)
            together |= names
        return groups

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Where a photo of this size is edited: its aspect at the base's area, in multiples."""
        side = self.settings.working_px or self.model.native_px
        # Few sizes, so that photos share them: at 1024 px the multiples of 64, SDXL's own buckets.
        unit = self.model.multiple_px * max(1, side // 16 // self.model.multiple_px)
        aspect = min(max(height / width, 0.25), 4.0)
        tall, wide = side * aspect**0.5, side / aspect**0.5
        return max(unit, round(tall / unit) * unit), max(unit, round(wide / unit) * unit)

    def _work(self, edits: Sequence[Edit], strengths: Tensor, source_of: Tensor) -> EditContext:
        """Rows [T] with the photos that they are of as latents."""
        model = self.model
        used = source_of.unique()
        edits = [edits[i] for i in used.tolist()]
        if edits:
            size = self.working_size(*edits[0].pixels.shape[:2])
            photos = torch.cat([_working_copy(edit.pixels, size) for edit in edits])
            x0 = model.encode(photos.to(model.device))
        else:
            x0 = torch.zeros(0, *model.latent_shape, device=model.device)
        same = torch.zeros(len(edits), dtype=torch.int64)
        return EditContext(
            predict=self.predict,
            prediction=model.prediction,
            x0=x0,
            condition=self._condition.rows(same),
            empty=self._empty.rows(same),
            strengths=strengths,
            source_of=torch.searchsorted(used, source_of).to(model.device),
            seeds=[edit.seed for edit in edits],
            keys=[edit.key for edit in edits],
        )


def _nothing(work: EditContext) -> EditGenerator:
    """No rows, no queries."""
    return work.x0
    yield


def _moving(mixes: Sequence[dict[str, float]]) -> list[str]:
    """The sliders that any of the mixes moves, each once, in order."""
    return list(dict.fromkeys(name for mix in mixes for name, strength in mix.items() if strength))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """float [0, 255] -> uint8, rounded."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _working_copy(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, *size] in [-1, 1]."""
    image = images_of(pixels)[None]
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)


def _changed(edit: Edit, residual: Tensor | None) -> np.ndarray:
    """The photo moved by a residual [3, h, w] in units of [-1, 1], within its mask."""
    photo = edit.pixels.astype(np.float32)
    if residual is None:
        return photo
    if residual.shape[-2:] != photo.shape[:2]:
        residual = F.interpolate(residual[None], photo.shape[:2], mode="bicubic")[0]
    change = residual.permute(1, 2, 0).numpy() * 127.5
    if edit.mask is not None:
        change = change * edit.mask[:, :, None]
    return np.clip(photo + change, 0, 255)
