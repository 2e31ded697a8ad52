"""The pipeline's middle stage: what the base sees of a shard's photos, through the Editor.

Every view of a photo, whole or of a region, is a picture of its own here; the stage before has cut
it out, and the one after brings its change back. So a batch holds as many pictures as it may,
whether they are of many photos or of one. Batches are full and always the same, so a shard is the
same whenever it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bs_ray.batch.prepare import digest
from bs_ray.batch.rows import EditedRow, PlannedRow, pack, seconds_of, unpack
from bs_ray.config import EditJob, EditorSettings
from bs_ray.config.base import OtherBases
from bs_ray.editing.editor import Edit, Editor, Outcome, outputs_of
from bs_ray.editing.gate import GatedEditor, gate_judges
from bs_ray.editing.locate import view_key
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.models import base_folder, load_base
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

Results = list[EditedRow | QuarantinedRow]
EditFunction = Callable[[Sequence[Edit]], list[Outcome]]
"""`Editor.edit`, with or without a quality gate around it."""


class EditShard:
    """{shard, rows, files} -> the same: the actor that holds the base and the sliders."""

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        """settings: those of the job's input list.

        Raises SliderError where a slider has changed since the job began.
        """
        import torch

        torch.set_num_threads(max(1, round(job.cpus_per_worker)))
        registry, sliders = Registry(job.registry), []
        model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
        base = BaseIdentity.of(model)
        for used in settings["sliders"].values():
            sliders.append(_slider(used, registry, base, job.other_bases))
            if digest(sliders[-1]) != used["sha256"]:
                raise SliderError(f"slider {used['place']}: got other weights than at the start")
        self.job, self.editor = job, Editor(model, sliders, of_views(job.editor))
        self.edit = edit_function(self.editor, job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began, started = time.time(), time.monotonic()
        rows = edit_rows(unpack(row), self.editor, self.edit, self.job)
        edit_s = time.monotonic() - started
        seconds = seconds_of(row) | {"edit_at_s": began, "edit_s": edit_s}
        return pack(row["shard"], rows, row["files"], **seconds)


def _slider(
    used: dict[str, Any], registry: Registry, base: BaseIdentity, others: OtherBases
) -> Slider:
    """A slider of the input list; words are in the list themselves."""
    if "card" in used:
        return Slider(Card.model_validate_json(used["card"]), {})
    return registry.resolve_on(used["place"], base, others)


def copy_shard(row: dict[str, Any]) -> dict[str, Any]:
    """{shard, rows, files} -> the same: in place of EditShard, where every output is its input."""
    rows = [[r] if is_quarantined(r) else copied(r) for r in unpack(row)]
    seconds = seconds_of(row) | {"edit_at_s": time.time(), "edit_s": 0.0}
    return pack(row["shard"], [r for some in rows for r in some], row["files"], **seconds)


def of_views(settings: EditorSettings) -> EditorSettings:
    """The settings for views, which are pictures that nobody looks for faces in."""
    return settings.model_copy(update={"region": "photo"})


def edit_function(editor: Editor, job: EditJob) -> EditFunction:
    """How this job edits: through its quality gate, if it has one."""
    if not job.gate:
        return editor.edit
    return GatedEditor(editor, gate_judges(base_folder(job.base), job.gate), job.gate).edit


def edit_rows(
    rows: Sequence[PlannedRow | QuarantinedRow], editor: Editor, edit: EditFunction, job: EditJob
) -> Results:
    """Edit a shard's photos: each becomes its edits, one after another, or its quarantine row.

    edit: as `edit_function` gives it. Where a batch fails its views are tried one by one, and the
    photos of those that fail are quarantined.
    """
    outcomes: dict[tuple[int, int], Outcome | Exception] = {}
    views, refused = _views(rows, editor, job.seed)
    for batch in batches(views, job.batch_size):
        edits = [view.edit for view in batch]
        found: Sequence[Outcome | Exception]
        try:
            found = edit(edits)
        except Exception:  # because of one view, or of all together: trying each alone tells
            found = [_alone(one, edit) for one in edits]
        outcomes |= {(view.photo, view.number): o for view, o in zip(batch, found, strict=True)}
    made: Results = []
    for index, row in enumerate(rows):
        if is_quarantined(row):
            made.append(row)
        elif index in refused:
            made.append(_failed(row, refused[index]))
        else:
            made += _edits_of(row, [outcomes[index, n] for n in range(len(row["views"]))])
    return made


@dataclass(frozen=True)
class View:
    """One view of one photo, and its edit."""

    photo: int
    """Number of its row."""
    number: int
    """Which of the photo's views it is."""
    edit: Edit


def _views(
    rows: Sequence[PlannedRow | QuarantinedRow], editor: Editor, seed: int
) -> tuple[list[View], dict[int, SliderError]]:
    """The views of all sound photos; photos with a strength that its slider refuses fail."""
    views: list[View] = []
    refused: dict[int, SliderError] = {}
    for index, row in enumerate(rows):
        if is_quarantined(row):
            continue
        try:
            mixes = [editor.mix(strengths) for strengths in row["edits"].values()]
        except SliderError as error:
            refused[index] = error
            continue
        for number, pixels in enumerate(row["views"]):
            key = view_key(row["sha256"], number)
            views.append(View(index, number, Edit(key, pixels, mixes, seed, cut=True)))
    return views, refused


def batches(views: Sequence[View], batch_size: int) -> Iterator[list[View]]:
    """The views in batches of `batch_size` edits, those of one size together."""
    batch: list[View] = []
    count = 0
    for view in sorted(views, key=lambda v: v.edit.pixels.shape[:2]):  # stable, so else in order
        if batch and count + len(view.edit.mixes) > batch_size:
            yield batch
            batch, count = [], 0
        batch.append(view)
        count += len(view.edit.mixes)
    if batch:
        yield batch


def _alone(one: Edit, edit: EditFunction) -> Outcome | Exception:
    try:
        return edit([one])[0]
    except Exception as error:
        return error


def _edits_of(row: PlannedRow, outcomes: Sequence[Outcome | Exception]) -> Results:
    """A photo's edits, by what became of its views; it is given up where one of them failed."""
    if wrong := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
        return [_failed(row, wrong[0])]
    made: Results = []
    for place, (name, mix) in enumerate(row["edits"].items()):
        views = [outputs_of(outcome)[place] for outcome in outcomes]  # type: ignore[arg-type]
        changes = [view.change for view in views if view.change is not None]
        if not all(np.isfinite(change).all() for change in changes):
            return [_failed(row, ArithmeticError("got pixels that are not finite"))]
        note = "; ".join(filter(None, [row["note"], *_notes([view.notes for view in views])]))
        made.append(_edited(row, name, mix, [_half(change) for change in changes], note))
    return made


def _half(change: np.ndarray) -> np.ndarray:
    """float16, which is exact to a sixteenth of a level."""
    return np.clip(change, -1000, 1000).astype(np.float16)


def _notes(views: Sequence[tuple[str, ...]]) -> list[str]:
    """The notes that all views of an edit share, then those of one region, which is named."""
    shared = [n for n in (views[0] if views else ()) if all(n in notes for notes in views)]
    own = ((i, note) for i, notes in enumerate(views, 1) for note in notes if note not in shared)
    return [*shared, *(f"region {i}: {note}" for i, note in own)]


def copied(row: PlannedRow) -> Results:
    """A photo's edits where no slider moves, made without an editor."""
    return [_edited(row, name, mix, [], row["note"]) for name, mix in row["edits"].items()]


def _edited(
    row: PlannedRow, name: str, mix: dict[str, float], changes: list[np.ndarray], note: str
) -> EditedRow:
    return EditedRow(
        key=row["key"],
        sha256=row["sha256"],
        format=row["format"],
        note=note,
        regions=row["regions"],
        edit=name,
        mix=mix,
        changes=changes,
    )


def _failed(row: PlannedRow, error: Exception) -> QuarantinedRow:
    return quarantined(row["key"], "edit", f"failed: {type(error).__name__}: {error}"[:300])
