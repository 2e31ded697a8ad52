"""The pipeline's middle stage: the photos of a shard through the Editor.

Its batches are full and always the same, so a shard is the same whenever it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bs_ray.batch.prepare import digest
from bs_ray.batch.rows import EditedRow, PlannedRow, pack, seconds_of, unpack
from bs_ray.config import EditJob
from bs_ray.editing.editor import Edit, Editor, Outcome, to_uint8
from bs_ray.editing.gate import GatedEditor
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.judges.load import find_judges
from bs_ray.models import base_folder, load_base
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

Results = list[EditedRow | QuarantinedRow]
EditFunction = Callable[[Sequence[Edit]], list[Outcome]]
"""`Editor.edit`, with or without a quality gate around it."""


class EditShard:
    """{shard, rows} -> {shard, rows}: the actor that holds the base and the sliders."""

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        """settings: those of the job's input list.

        Raises SliderError where a slider has changed since the job began.
        """
        import torch

        torch.set_num_threads(max(1, round(job.cpus_per_worker)))
        registry, sliders = Registry(job.registry), []
        for used in settings["sliders"].values():
            sliders.append(_slider(used, registry))
            if digest(sliders[-1]) != used["sha256"]:
                raise SliderError(f"slider {used['place']}: got other weights than at the start")
        model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
        self.job, self.editor = job, Editor(model, sliders, job.editor)
        self.edit = edit_function(self.editor, job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began, started = time.time(), time.monotonic()
        rows = edit_rows(unpack(row), self.editor, self.edit, self.job)
        edit_s = time.monotonic() - started
        return pack(row["shard"], rows, **seconds_of(row), edit_at_s=began, edit_s=edit_s)


def _slider(used: dict[str, Any], registry: Registry) -> Slider:
    """A slider of the input list; words are in the list themselves."""
    if "card" in used:
        return Slider(Card.model_validate_json(used["card"]), {})
    return registry.resolve(used["place"])


def copy_shard(row: dict[str, Any]) -> dict[str, Any]:
    """{shard, rows} -> {shard, rows}: in place of EditShard, where every output is its input."""
    rows = [[r] if is_quarantined(r) else copied(r) for r in unpack(row)]
    return pack(
        row["shard"],
        [r for some in rows for r in some],
        **seconds_of(row),
        edit_at_s=time.time(),
        edit_s=0.0,
    )


def edit_function(editor: Editor, job: EditJob) -> EditFunction:
    """How this job edits: through its quality gate, if it has one."""
    if not job.gate:
        return editor.edit
    return GatedEditor(editor, find_judges(base_folder(job.base)), job.gate).edit


def edit_rows(
    rows: Sequence[PlannedRow | QuarantinedRow], editor: Editor, edit: EditFunction, job: EditJob
) -> Results:
    """Edit a shard's photos: each becomes its edits, one after another, or its quarantine row.

    edit: as `edit_function` gives it. Where a batch fails its photos are tried one by one, and
    those that fail are quarantined.
    """
    edited: dict[str, Results] = {}
    for batch in batches(rows, editor.working_size, job.batch_size):
        try:
            results: Iterator[Results] = iter(_edit_batch(batch, editor, edit, job.seed))
        except Exception:  # because of one photo, or of all together: trying each alone tells
            results = (_edit_alone(row, editor, edit, job.seed) for row in batch)
        edited |= {row["key"]: result for row, result in zip(batch, results, strict=True)}
    done = [[row] if is_quarantined(row) else edited[row["key"]] for row in rows]
    return [row for some in done for row in some]


def batches(
    rows: Sequence[PlannedRow | QuarantinedRow],
    working_size: Callable[[int, int], tuple[int, int]],
    batch_size: int,
) -> Iterator[list[PlannedRow]]:
    """The sound photos in batches of `batch_size` edits, photos of one working size together.

    working_size(height, width): the size at which such a photo is edited.
    """
    photos = [row for row in rows if not is_quarantined(row)]
    photos.sort(key=lambda row: working_size(*row["pixels"].shape[:2]))  # stable, so else in order
    batch: list[PlannedRow] = []
    count = 0
    for photo in photos:
        if batch and count + len(photo["edits"]) > batch_size:
            yield batch
            batch, count = [], 0
        batch.append(photo)
        count += len(photo["edits"])
    if batch:
        yield batch


def _edit_batch(
    batch: Sequence[PlannedRow], editor: Editor, edit: EditFunction, seed: int
) -> list[Results]:
    """A photo with a strength that its slider refuses fails by itself; the others are edited."""
    edits: dict[int, Edit] = {}
    results: dict[int, Results] = {}
    for index, row in enumerate(batch):
        try:
            mixes = [editor.mix(strengths) for strengths in row["edits"].values()]
            edits[index] = Edit(row["sha256"], row["pixels"], mixes, seed)
        except SliderError as error:
            results[index] = [_failed(row, error)]
    for index, outcome in zip(edits, edit(list(edits.values())), strict=True):
        results[index] = _outputs(batch[index], outcome)
    return [results[index] for index in range(len(batch))]


def _outputs(row: PlannedRow, outcome: Outcome) -> Results:
    if not isinstance(outcome, list):
        return [_failed(row, outcome)]
    if not all(np.isfinite(output.pixels).all() for output in outcome):
        return [_failed(row, ArithmeticError("got pixels that are not finite"))]
    made: Results = []
    for (name, mix), output in zip(row["edits"].items(), outcome, strict=True):
        note = "; ".join(filter(None, [row["note"], *output.notes]))
        # Only an edit that moves nothing is the photo's own file again.
        source = None if any(mix.values()) else row["source"]
        regions = [region.described() for region in output.regions]
        changes = {"pixels": to_uint8(output.pixels), "source": source, "note": note}
        made.append(_edited(row, name, mix, regions=regions, **changes))
    return made


def copied(row: PlannedRow) -> Results:
    """A photo's outputs where no slider moves, made without an editor."""
    return [_edited(row, name, mix) for name, mix in row["edits"].items()]


def _edited(row: PlannedRow, name: str, mix: dict[str, float], **changes: Any) -> EditedRow:
    photo = {field: value for field, value in row.items() if field != "edits"}
    made = {"regions": [], **changes, "edit": name, "mix": mix}
    return EditedRow(**{**photo, **made})  # type: ignore[typeddict-item]


def _edit_alone(row: PlannedRow, editor: Editor, edit: EditFunction, seed: int) -> Results:
    try:
        return _edit_batch([row], editor, edit, seed)[0]
    except Exception as error:
        return [_failed(row, error)]


def _failed(row: PlannedRow, error: Exception) -> QuarantinedRow:
    return quarantined(row["key"], "edit", f"failed: {type(error).__name__}: {error}"[:300])
