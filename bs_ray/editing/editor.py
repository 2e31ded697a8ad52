"""The Editor: what batch, serve, evaluate and the shell share, so offline equals online.

A photo is any uint8 RGB array [H, W, 3]. It is edited at the base's own scale, and only the
difference is added to it (residual output): pixels_out = pixels_in + up(decode(x0 + d) -
decode(x0)). So strength 0 returns the photo bit for bit, and what is not edited stays sharp at any
size. Where the settings say so, the base looks at regions of the photo instead, such as its faces,
each at the base's own size; only their differences are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.locate import locate, working_size
from bs_ray.editing.methods import METHODS, Method
from bs_ray.editing.run import EditGenerator, EditRun, run_alone
from bs_ray.editing.views import (
    Edit,
    Edited,
    EditError,
    Outcome,
    View,
    as_pixels,
    changed,
    check_boxes,
    outputs_of,
    to_uint8,
    views_of,
    with_changes,
)
from bs_ray.editing.words import WordBook, Words
from bs_ray.images.faces import CenterFace, Face, FaceDetector
from bs_ray.images.pixels import images_of
from bs_ray.images.scaling import shrunk
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.resident import Resident
from bs_ray.sliders.slider import Slider

__all__ = [
    "Edit",
    "EditError",
    "Edited",
    "Editor",
    "Outcome",
    "PhotoEditRun",
    "outputs_of",
    "to_uint8",
]


_REGIONS = 16  # edited at once


class PhotoEditRun(EditRun):
    """Edits of one working size and one method, on their way."""

    def __init__(
        self,
        model: DiffusionModel,
        edits: Sequence[Edit],
        views: Sequence[View],
        sliders: Sequence[Slider],
        moving: Sequence[int],
        context: EditContext,
        steps: EditGenerator,
    ):
        """moving: which of the outputs of all views, in order, are rows of `context`; the others
        change nothing."""
        super().__init__(steps, sliders)
        self._model, self.edits, self._views = model, edits, views
        self._moving, self._context = moving, context
        self._before: Tensor | None = None

    @torch.no_grad()
    def residuals(self, latents: Tensor) -> list[list[list[tuple[View, Tensor]]]]:
        """For every edit and mix the views that these edited latents change, each with its change
        [3, h, w] in units of [-1, 1]."""
        of: dict[int, Tensor] = {}
        if self._moving:
            if self._before is None:
                self._before = self._model.decode(self._context.x0)
            residual = (self._model.decode(latents) - self._before[self._context.source_of]).cpu()
            of = dict(zip(self._moving, residual, strict=True))
        place = 0
        found: list[list[list[tuple[View, Tensor]]]]
        found = [[[] for _ in edit.mixes] for edit in self.edits]
        for view in self._views:
            for output in found[view.edit]:
                if place in of:
                    output.append((view, of[place]))
                place += 1
        return found

    def pixels(self, latents: Tensor) -> list[list[np.ndarray]]:
        """Every edit's outputs for these edited latents, float32 [H, W, 3] in [0, 255]."""
        return [
            [changed(edit, output) for output in outputs]
            for edit, outputs in zip(self.edits, self.residuals(latents), strict=True)
        ]


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
        detector: FaceDetector | None = None,
    ):
        """slots, rank: room in the bank for sliders that will be put into `sliders` later.
        methods: what the names in `EditorSettings.method` stand for. detector: what finds faces,
        where settings ask for them; CenterFace where left out.

        Raises SliderError where a slider is of another family or its words mean nothing to the
        base, and FacesUnavailable.
        """
        for slider in sliders:
            slider.on(BaseIdentity.of(model), "allow")  # verbs ask whether another base may be
        self.model, self.settings, self._methods = model, settings, methods
        self.sliders = {slider.reference: slider for slider in sliders}
        """The sliders that mixes may name, by name@version."""
        weighted = [slider for slider in sliders if slider.factors]
        slots = slots or min(len(weighted), settings.resident_sliders)
        layers = [layer for slider in weighted for layer in slider.factors]
        if slots > len(weighted):
            layers += model.slider_targets()
        rank = max([rank, *(slider.card.rank for slider in sliders)])
        self._resident = Resident(model, max(1, slots), rank, list(dict.fromkeys(layers)))
        self.bank = self._resident.bank
        self.bank.attach(model.denoiser)
        self._prompt = settings.prompt if settings.prompt is not None else sliders[0].card.target
        self._detector = detector
        if settings.region == "face":
            self._need_detector()
        self.evaluations = 0
        """Rows that the denoiser has seen; a row that is differentiated counts three times."""
        self._book = WordBook(model, self.predict, len(self.bank.names))
        for slider in sliders:
            self._book.check(slider.card)

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
        """The mixes as a table [len(mixes), slots], with their sliders loaded into the bank; words
        have no column.

        beside: sliders that must stay in the bank, since other runs use them. Raises SliderError
        for more sliders than slots.
        """
        moving = self.moving(mixes)
        slots = dict(zip(moving, self._resident.use([*moving.values(), *beside]), strict=False))
        table = torch.zeros(len(mixes), len(self.bank.names), device=self.model.device)
        for row, mix in enumerate(mixes):
            for reference in mix.lora_scales.keys() & slots.keys():
                table[row, slots[reference]] = mix.lora_scales[reference]
        return table

    def scales(
        self, mixes: Sequence[Mix], beside: Sequence[Slider] = (), prompt: str | None = None
    ) -> tuple[Tensor, Words | None]:
        """`lora_scales`, with a column more for each prompt of the mixes' sliders of words, and
        these prompts.

        prompt: what all rows are conditioned on; None where they differ. Raises SliderError for
        words that mean nothing to the base, too.
        """
        table, words = self._book.table(mixes, self.sliders, prompt)
        return torch.cat([self.lora_scales(mixes, beside), table], 1), words

    def moving(self, mixes: Sequence[Mix]) -> dict[str, Slider]:
        """The sliders with weights that any of the mixes moves, each once, in order."""
        return {
            reference: self.sliders[reference]
            for mix in mixes
            for reference in mix.lora_scales
            if self.sliders[reference].factors
        }

    def check(self, edit: Edit) -> None:
        """Raise EditError for pixels, a mask or boxes of another form, or for too many sliders at
        once."""
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
        check_boxes(edit, edit.settings or self.settings)
        # A server checks an edit before its sliders are here; it counts them all.
        moving = {
            reference
            for mix in edit.mixes
            for reference in mix.lora_scales
            if reference not in self.sliders or self.sliders[reference].factors
        }
        if (count := len(moving)) > (slots := len(self.bank.names)):
            raise EditError(
                f"photo {edit.key}: got {count} sliders; expected at most {slots} at once. "
                "Raise editor.resident_sliders"
            )

    def located(self, edit: Edit) -> Edit:
        """The edit with the regions that its settings ask for, largest face first.

        Raises EditError as `check`. May be called beside a run, from another thread.
        """
        self.check(edit)
        settings = edit.settings or self.settings
        if settings.region == "photo" or edit.regions is not None:
            return edit
        given = None if edit.boxes is None else [Face(box) for box in edit.boxes]
        regions, note = locate(
            edit.pixels, settings, self.model.framing, self._need_detector, given
        )
        notes = (*edit.notes, note) if note else edit.notes
        if regions is None:
            whole = settings.model_copy(update={"region": "photo"})
            return replace(edit, settings=whole, boxes=None, notes=notes)
        return replace(edit, regions=regions, notes=notes)

    def _need_detector(self) -> FaceDetector:
        """The detector. Raises FacesUnavailable."""
        if self._detector is None:
            self._detector = CenterFace()
        return self._detector

    @torch.no_grad()
    def edit(self, edits: Sequence[Edit]) -> list[Outcome]:
        """Every edit's outputs, in order, or the error that is this edit's own.

        The photos may have any sizes: those that share a working size share forward passes, and
        so do regions, `_REGIONS` at a time.
        """
        buckets: dict[Any, list[int]] = defaultdict(list)
        outcomes: dict[int, Outcome] = {}
        located: dict[int, Edit] = {}
        for index, edit in enumerate(edits):
            try:
                located[index] = self.located(edit)
            except EditError as error:
                outcomes[index] = error
                continue
            if located[index].regions is None:
                buckets[self._size(located[index]), located[index].settings].append(index)
        for bucket in buckets.values():
            for indices in self._groups(located, bucket):
                run = self.begin([located[i] for i in indices])
                run_alone(run, self.predict)
                outcomes |= dict(zip(indices, self.finish(run), strict=True))
        outcomes |= self._edit_regions({i: e for i, e in located.items() if e.regions is not None})
        return [outcomes[index] for index in range(len(edits))]

    def _edit_regions(self, edits: Mapping[int, Edit]) -> dict[int, Outcome]:
        """Each region is edited as a picture of its own, so that a photo of many faces takes no
        more of the model's memory than several photos do."""
        cut = [(index, part) for index, edit in edits.items() for part in self._parts(edit)]
        parts: dict[int, list[list[Edited]]] = defaultdict(list)
        for first in range(0, len(cut), _REGIONS):
            some = cut[first : first + _REGIONS]
            outcomes = self.edit([part for _, part in some])
            for (index, _), outcome in zip(some, outcomes, strict=True):
                parts[index].append(outputs_of(outcome))
        return {
            index: [
                Edited(
                    with_changes(edit, [part[place].change for part in parts[index]]),
                    (*mix.notes, *edit.notes),
                    regions=edit.regions or (),
                )
                for place, mix in enumerate(edit.mixes)
            ]
            for index, edit in edits.items()
        }

    def _parts(self, edit: Edit) -> list[Edit]:
        """An edit for each region of a located edit."""
        settings = edit.settings or self.settings
        whole = settings.model_copy(update={"region": "photo"})
        return [
            Edit(view.key, view.pixels, edit.mixes, edit.seed, settings=whole, cut=True)
            for view in views_of([edit], self.working_size(1, 1)[0])
        ]

    @torch.no_grad()
    def begin(self, edits: Sequence[Edit], beside: Sequence[Slider] = ()) -> PhotoEditRun:
        """Edits as `located` gives them, of one working size and settings, before their first step.

        beside: as in `lora_scales`, which also says what is raised.
        """
        settings = edits[0].settings or self.settings
        assert settings.region == "photo" or all(edit.regions is not None for edit in edits)
        size = self._size(edits[0])
        views = views_of(edits, size[0])
        mixes = [mix for view in views for mix in edits[view.edit].mixes]
        prompt = settings.prompt if settings.prompt is not None else self._prompt
        scales, words = self.scales(mixes, beside, prompt)
        source_of = torch.tensor(
            [i for i, view in enumerate(views) for _ in edits[view.edit].mixes], dtype=torch.int64
        )
        # Displacement does not move a photo whose LoRA scales are all 0: there is nothing to
        # compute. The baselines do, and that is measured.
        moving = (scales != 0).any(1).cpu()
        if settings.method != "displacement":
            moving = torch.ones_like(moving)
        rows = moving.nonzero()[:, 0]
        context = self._context(views, size, scales[rows], source_of[rows], prompt, words)
        method = self._methods[settings.method]
        steps = method(context, settings) if len(rows) else _nothing(context)
        sliders = list(self.moving(mixes).values())
        return PhotoEditRun(self.model, edits, views, sliders, rows.tolist(), context, steps)

    def finish(self, run: PhotoEditRun) -> list[list[Edited]]:
        """The outputs of a run that has finished, edit by edit."""
        assert run.latents is not None
        return [
            [self._edited(edit, *made) for made in zip(edit.mixes, outputs, strict=True)]
            for edit, outputs in zip(run.edits, run.residuals(run.latents), strict=True)
        ]

    @staticmethod
    def _edited(edit: Edit, mix: Mix, found: Sequence[tuple[View, Tensor]]) -> Edited:
        pixels, notes = changed(edit, found), (*mix.notes, *edit.notes)
        change = as_pixels(found[0][1]) if edit.cut and found else None
        return Edited(pixels, notes, regions=edit.regions or (), change=change)

    def _groups(self, edits: Mapping[int, Edit], bucket: list[int]) -> list[list[int]]:
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

    def _size(self, edit: Edit) -> tuple[int, int]:
        """The working size of a located edit: (height, width)."""
        if edit.cut:
            return edit.pixels.shape[0], edit.pixels.shape[1]
        whole = edit.regions is None
        return self.working_size(*edit.pixels.shape[:2]) if whole else self.working_size(1, 1)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which such a photo is edited: its aspect at the base's area, in multiples."""
        side = self.settings.working_px or self.model.native_px
        return working_size(height, width, side, self.model.multiple_px)

    def _context(
        self,
        views: Sequence[View],
        size: tuple[int, int],
        scales: Tensor,
        source_of: Tensor,
        prompt: str,
        words: Words | None,
    ) -> EditContext:
        """What the method gets: rows [T] of LoRA scales, and the views they are of as latents."""
        model = self.model
        used = source_of.unique()
        views = [views[i] for i in used.tolist()]
        if views:
            photos = torch.cat([_working_copy(view.pixels, size) for view in views])
            x0 = model.encode(photos.to(model.device))
        else:
            x0 = torch.zeros(0, *model.latent_shape, device=model.device)
        same = torch.zeros(len(views), dtype=torch.int64)
        return EditContext(
            predict=self.predict,
            prediction=model.prediction,
            x0=x0,
            condition=self._book.embed(prompt).rows(same),
            empty=self._book.embed("").rows(same),
            lora_scales=scales,
            source_of=torch.searchsorted(used, source_of).to(model.device),
            seeds=[view.seed for view in views],
            keys=[view.key for view in views],
            words=words,
        )


def _nothing(context: EditContext) -> EditGenerator:
    """A method that has no rows and asks for nothing."""
    return context.x0
    yield


def _working_copy(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, *size] in [-1, 1]."""
    return images_of(shrunk(pixels, size))[None]
