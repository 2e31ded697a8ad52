"""The Editor: what batch, serve, evaluate and the shell share, so offline equals online.

A photo is any uint8 RGB array [H, W, 3]. It is edited at the base's own scale, and only the
difference is added to it (residual output): pixels_out = pixels_in + up(decode(x0 + d) -
decode(x0)). So strength 0 returns the photo bit for bit, and what is not edited stays sharp at any
size.
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
from bs_ray.editing.methods import METHODS, Method
from bs_ray.editing.run import EditGenerator, EditRun, run_alone
from bs_ray.images.pixels import images_of
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.resident import Resident
from bs_ray.sliders.slider import Slider


class EditError(ValueError):
    """An edit that cannot be made; the message says got, expected and what to do."""


@dataclass(frozen=True)
class Edit:
    """One photo and what to do with it: every mix of sliders gives one output."""

    key: str
    """Names the photo's noise: its content hash, so that batch and serve agree."""
    pixels: np.ndarray
    """uint8 RGB [H, W, 3]."""
    mixes: Sequence[Mix]
    """One for each output, as `Editor.mix` makes them."""
    seed: int = 0
    mask: np.ndarray | None = None
    """float32 [H, W] in [0, 1], 1 where the photo may change; without one it may everywhere."""
    settings: EditorSettings | None = None
    """How to edit this photo; None stands for the Editor's own settings."""


@dataclass(frozen=True)
class Edited:
    """One output."""

    pixels: np.ndarray
    """float32 RGB [H, W, 3] in [0, 255], the photo's own size."""
    notes: tuple[str, ...] = ()
    """What the caller should know, such as a strength beyond the slider's usable range."""
    measured: dict[str, float] = field(default_factory=dict)
    """What a quality gate found: `identity`, `effect`."""


Outcome = list[Edited] | EditError
"""What became of one Edit: its outputs, or what is wrong with it."""


def outputs_of(outcome: Outcome) -> list[Edited]:
    """The outputs. Raises the EditError where there is one."""
    if isinstance(outcome, list):
        return outcome
    raise outcome


class PhotoEditRun(EditRun):
    """Edits of one working size and one method, on their way."""

    def __init__(
        self,
        model: DiffusionModel,
        edits: Sequence[Edit],
        sliders: Sequence[Slider],
        moving: Sequence[int],
        context: EditContext,
        steps: EditGenerator,
    ):
        """moving: which of the edits' outputs are rows of `context`; the others are the photos."""
        super().__init__(steps, sliders)
        self._model, self.edits = model, edits
        self._moving, self._context = moving, context
        self._before: Tensor | None = None

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> list[list[np.ndarray]]:
        """Every edit's outputs for these edited latents, float32 [H, W, 3] in [0, 255]."""
        of: dict[int, Tensor] = {}
        if self._moving:
            if self._before is None:
                self._before = self._model.decode(self._context.x0)
            residual = (self._model.decode(latents) - self._before[self._context.source_of]).cpu()
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
        methods: Mapping[str, Method] = METHODS,
    ):
        """slots, rank: room in the bank for sliders that will be put into `sliders` later.
        methods: what the names in `EditorSettings.method` stand for.

        Raises SliderError where a slider was trained on another base.
        """
        for slider in sliders:
            slider.check_base(model.base_id)
        self.model, self.settings, self._methods = model, settings, methods
        self.sliders = {slider.reference: slider for slider in sliders}
        """The sliders that mixes may name, by name@version."""
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
        """Rows that the denoiser has seen; a row that is differentiated counts three times."""

    def close(self) -> None:
        """Detach the sliders: the base is bit for bit itself again."""
        self.bank.detach()

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor) -> Tensor:
        """The denoiser's prediction with each row's sliders at `lora_scales` [B, slots]."""
        self.evaluations += len(x_t) * (3 if torch.is_grad_enabled() else 1)
        return self.bank.predict(self.model, x_t, t, condition, lora_scales)

    def mix(self, strengths: Mapping[str, float]) -> Mix:
        """Strengths of this editor's sliders as a Mix, for an Edit.

        Raises SliderError for an unknown slider, and for a strength that its card refuses.
        """
        cards = {reference: slider.card for reference, slider in self.sliders.items()}
        return Mix.of(strengths, cards, self.settings.calibrated)

    def lora_scales(self, mixes: Sequence[Mix], beside: Sequence[Slider] = ()) -> Tensor:
        """The mixes as a table [len(mixes), slots], with their sliders loaded into the bank.

        beside: sliders that must stay in the bank, since other runs use them. Raises SliderError
        for more sliders than slots.
        """
        moving = self.moving(mixes)
        slots = dict(zip(moving, self._resident.use([*moving.values(), *beside]), strict=False))
        table = torch.zeros(len(mixes), len(self.bank.names), device=self.model.device)
        for row, mix in enumerate(mixes):
            for reference, scale in mix.lora_scales.items():
                table[row, slots[reference]] = scale
        return table

    def moving(self, mixes: Sequence[Mix]) -> dict[str, Slider]:
        """The sliders that any of the mixes moves, each once, in order."""
        return {
            reference: self.sliders[reference] for mix in mixes for reference in mix.lora_scales
        }

    def check(self, edit: Edit) -> None:
        """Raise EditError for pixels or a mask of another form, or for too many sliders at once."""
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
        moving = {reference for mix in edit.mixes for reference in mix.lora_scales}
        if (count := len(moving)) > (slots := len(self.bank.names)):
            raise EditError(
                f"photo {edit.key}: got {count} sliders; expected at most {slots} at once. "
                "Raise editor.resident_sliders"
            )

    @torch.no_grad()
    def edit(self, edits: Sequence[Edit]) -> list[Outcome]:
        """Every edit's outputs, in order, or the error that is this edit's own.

        The photos may have any sizes: those that share a working size share forward passes.
        """
        buckets: dict[Any, list[int]] = defaultdict(list)
        outcomes: dict[int, Outcome] = {}
        for index, edit in enumerate(edits):
            try:
                self.check(edit)
            except EditError as error:
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
        """Edits that have passed `check`, of one working size and settings, before their first
        step.

        beside: as in `lora_scales`, which also says what is raised.
        """
        mixes = [mix for edit in edits for mix in edit.mixes]
        lora_scales = self.lora_scales(mixes, beside)
        source_of = torch.tensor([i for i, edit in enumerate(edits) for _ in edit.mixes])
        settings = edits[0].settings or self.settings
        # Displacement does not move a photo whose LoRA scales are all 0: there is nothing to
        # compute. The baselines do, and that is measured.
        moving = (lora_scales.abs().amax(1) > 0).cpu()
        if settings.method != "displacement":
            moving = torch.ones_like(moving)
        rows = moving.nonzero()[:, 0]
        context = self._context(edits, lora_scales[rows], source_of[rows])
        method = self._methods[settings.method]
        steps = method(context, settings) if len(rows) else _nothing(context)
        sliders = list(self.moving(mixes).values())
        return PhotoEditRun(self.model, edits, sliders, rows.tolist(), context, steps)

    def finish(self, run: PhotoEditRun) -> list[list[Edited]]:
        """The outputs of a run that has finished, edit by edit."""
        assert run.latents is not None
        found = run.pixels(run.latents)
        return [
            [Edited(p, mix.notes) for p, mix in zip(pixels, edit.mixes, strict=True)]
            for pixels, edit in zip(found, run.edits, strict=True)
        ]

    def _groups(self, edits: Sequence[Edit], bucket: list[int]) -> list[list[int]]:
        """The bucket in its order, cut where the sliders of a group would no longer fit the
        bank."""
        groups: list[list[int]] = []
        together: set[str] = set()
        for index in bucket:
            names = set(self.moving(edits[index].mixes))
            if not groups or len(together | names) > len(self.bank.names):
                groups.append([])
                together = set()
            groups[-1].append(index)
            together |= names
        return groups

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which such a photo is edited: its aspect at the base's area, in multiples."""
        side = self.settings.working_px or self.model.native_px
        # Few sizes, so that photos share them: at 1024 px multiples of 64, as in SDXL's own
        # buckets.
        unit = self.model.multiple_px * max(1, side // 16 // self.model.multiple_px)
        aspect = min(max(height / width, 0.25), 4.0)
        tall, wide = side * aspect**0.5, side / aspect**0.5
        return max(unit, round(tall / unit) * unit), max(unit, round(wide / unit) * unit)

    def _context(self, edits: Sequence[Edit], scales: Tensor, source_of: Tensor) -> EditContext:
        """What the method gets: rows [T] of LoRA scales, and the photos they are of as latents."""
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
            lora_scales=scales,
            source_of=torch.searchsorted(used, source_of).to(model.device),
            seeds=[edit.seed for edit in edits],
            keys=[edit.key for edit in edits],
        )


def _nothing(context: EditContext) -> EditGenerator:
    """A method that has no rows and asks for nothing."""
    return context.x0
    yield


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
