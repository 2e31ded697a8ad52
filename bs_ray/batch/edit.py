"""One shard's photos through the Editor, in batches that are full and always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bs_ray.batch.rows import EditedRow, PlannedRow
from bs_ray.config import EditJob
from bs_ray.editing.editor import Edit, Editor, Outcome, to_uint8
from bs_ray.editing.gate import GatedEditor
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.judges.load import find_judges
from bs_ray.models import base_folder

AnyEditor = Editor | GatedEditor
Size = Callable[[int, int], tuple[int, int]]


def gated(editor: Editor, job: EditJob) -> AnyEditor:
    """The editor behind the job's quality gate, if it has one."""
    if not job.gate:
        return editor
    return GatedEditor(editor, find_judges(base_folder(job.base)), job.gate)


def edit_rows(
    rows: Sequence[PlannedRow | QuarantinedRow],
    editor: AnyEditor,
    working_size: Size,
    job: EditJob,
) -> list[EditedRow | QuarantinedRow]:
    """Edit a shard's photos; each becomes its edits, one after another, or its quarantine row.

    working_size: where a photo of some height and width is edited (`Editor.working_size`).
    Where a batch fails its photos are tried one by one, and those that fail are quarantined.
    """
    edited: dict[str, list[EditedRow | QuarantinedRow]] = {}
    for batch in batches(rows, working_size, job.batch_size):
        try:
            results: Iterator[Any] = iter(_edit_batch(batch, editor, job.seed))
        except Exception:  # one photo of it, or their sum: the next try tells
            results = (_edit_alone(row, editor, job.seed) for row in batch)
        edited |= {row["key"]: result for row, result in zip(batch, results, strict=True)}
    done = [[row] if is_quarantined(row) else edited[row["key"]] for row in rows]
    return [row for some in done for row in some]


def batches(
    rows: Sequence[PlannedRow | QuarantinedRow], working_size: Size, batch_size: int
) -> Iterator[list[PlannedRow]]:
    """The sound photos, those of one working size together, in batches of `batch_size` edits."""
    photos = [row for row in rows if not is_quarantined(row)]
    photos.sort(key=lambda row: working_size(*row["pixels"].shape[:2]))  # stable: else as they come
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
    batch: Sequence[PlannedRow], editor: AnyEditor, seed: int
) -> list[list[EditedRow | QuarantinedRow]]:
    edits = [Edit(row["sha256"], row["pixels"], [*row["edits"].values()], seed) for row in batch]
    outcomes = editor.edit(edits)
    return [_outputs(row, outcome) for row, outcome in zip(batch, outcomes, strict=True)]


def _outputs(row: PlannedRow, outcome: Outcome) -> list[EditedRow | QuarantinedRow]:
    if not isinstance(outcome, list):
        return [_failed(row, outcome)]
    if not all(np.isfinite(output.pixels).all() for output in outcome):
        return [_failed(row, ArithmeticError("got pixels that are not finite"))]
    made: list[EditedRow | QuarantinedRow] = []
    for (name, mix), output in zip(row["edits"].items(), outcome, strict=True):
        note = "; ".join(filter(None, [row["note"], *output.notes]))
        # Only an edit that moves nothing is the photo's own file again.
        source = None if any(mix.values()) else row["source"]
        changes = {"pixels": to_uint8(output.pixels), "source": source, "note": note}
        made.append(_edited(row, name, mix, **changes))
    return made


def copied(row: PlannedRow) -> list[EditedRow | QuarantinedRow]:
    """A photo's outputs where no slider moves, without an editor."""
    return [_edited(row, name, mix) for name, mix in row["edits"].items()]


def _edited(row: PlannedRow, name: str, mix: dict[str, float], **changes: Any) -> EditedRow:
    photo = {field: value for field, value in row.items() if field != "edits"}
    return EditedRow(**{**photo, **changes, "edit": name, "mix": mix})  # type: ignore[typeddict-item]


def _edit_alone(row: PlannedRow, editor: AnyEditor, seed: int) -> list[EditedRow | QuarantinedRow]:
    try:
        return _edit_batch([row], editor, seed)[0]
    except Exception as error:
        return [_failed(row, error)]


def _failed(row: PlannedRow, error: Exception) -> QuarantinedRow:
    return quarantined(row["key"], "edit", f"failed: {type(error).__name__}: {error}"[:300])
