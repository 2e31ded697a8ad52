"""An editor without a model, for tests whose subject is what surrounds the editing.

A worker that holds the real one takes many seconds to import torch and diffusers.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from bs_ray.batch.fetch import fetch_shard
from bs_ray.batch.pipeline import pipeline
from bs_ray.batch.prepare import PreparedJob
from bs_ray.batch.rows import EditedRow, PlannedRow, pack, seconds_of, unpack
from bs_ray.batch.write import write_shard
from bs_ray.config import EditJob
from bs_ray.images.rows import is_quarantined

_SHARD_S = 0.2  # long enough that a shard can be seen to end before the next one does


class Brighter:
    """In place of EditShard: an edit adds 10 times the sum of its strengths to the photo."""

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        pass

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        time.sleep(_SHARD_S)
        rows = []
        for photo in unpack(row):
            rows += [photo] if is_quarantined(photo) else edits_of(photo)
        seconds = seconds_of(row) | {"edit_at_s": began, "edit_s": _SHARD_S}
        return pack(row["shard"], rows, row["files"], **seconds)


def edits_of(photo: PlannedRow) -> list[EditedRow]:
    return [
        EditedRow(
            key=photo["key"],
            sha256=photo["sha256"],
            format=photo["format"],
            note=photo["note"],
            regions=photo["regions"],
            edit=name,
            mix=mix,
            changes=[brighter(view, mix) for view in photo["views"]] if any(mix.values()) else [],
        )
        for name, mix in photo["edits"].items()
    ]


def brighter(view: np.ndarray, mix: dict[str, float]) -> np.ndarray:
    return np.full(view.shape, 10 * sum(mix.values()), np.float16)


brighter_pipeline = partial(pipeline, editors=Brighter)
"""In place of `pipeline`: the same on Ray, without a model."""


class HerePipeline:
    """In place of `pipeline`: the same stages in this process, without Ray."""

    def __init__(self, prepared: PreparedJob, pending: Sequence[int]):
        self.prepared, self.pending = prepared, pending

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        job, input_list = self.prepared.job, self.prepared.input_list
        for number in range(len(self.pending)):
            row = fetch_shard(
                {"id": number},
                job=job,
                input_list=input_list,
                edits=self.prepared.edits,
                references=self.prepared.references,
                sight=self.prepared.sight,
                pending=self.pending,
            )
            yield write_shard(
                self.edited(row),
                job=job,
                stamp=self.prepared.stamp,
                generation=input_list.generation,
            )

    def edited(self, row: dict[str, Any]) -> dict[str, Any]:
        """The shard as its editor hands it on."""
        rows: list[Any] = []
        for photo in unpack(row):
            rows += [photo] if is_quarantined(photo) else edits_of(photo)
        seconds = seconds_of(row) | {"edit_at_s": time.time(), "edit_s": 0.0}
        return pack(row["shard"], rows, row["files"], **seconds)


class EditingPipeline(HerePipeline):
    """The same with the real editor."""

    def __init__(self, prepared: PreparedJob, pending: Sequence[int]):
        from bs_ray.batch.edit import EditShard  # not at the top: see there

        super().__init__(prepared, pending)
        self.editor = EditShard(prepared.job, prepared.input_list.settings)

    def edited(self, row: dict[str, Any]) -> dict[str, Any]:
        return self.editor(row)
