"""A request without mistakes: its tasks for the engine, and the pictures that come of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bs_ray.serve.engine.tasks import Result, Task
from bs_ray.serve.http.boxes import RegionInfo
from bs_ray.serve.http.pictures import write_picture
from bs_ray.serve.http.schema import EditRequest, GenerateRequest
from bs_ray.serve.http.subject import Subject


@dataclass(frozen=True)
class Part:
    """A photo under one seed, or one seed of a generation."""

    seed: int
    tasks: list[Task]
    """Views of the photo, few enough for one pass in each of them; none where nothing is edited."""
    subject: Subject | None = None
    """None for a generation."""

    def file(
        self,
        request: EditRequest | GenerateRequest,
        results: Sequence[Result],
        number: int,
        made: dict[str, Any],
    ) -> bytes:
        """The picture under the mix of that number, as a file. results: those of the tasks."""
        form, quality = request.output_format, request.output_compression
        if self.subject is None:
            [result] = results
            return write_picture(result.pictures[number], form, quality, None, made)
        changes = [change for result in results for change in result.changes[number]]
        pixels = self.subject.picture(changes, np.float32 if form == "npy" else np.uint8)
        if regions := self.subject.described():
            made = {**made, "regions": regions}
        return write_picture(pixels, form, quality, self.subject.photo, made)


@dataclass(frozen=True)
class Prepared:
    """A request without mistakes, as tasks for the engine."""

    request: EditRequest | GenerateRequest
    parts: list[Part]
    resolved: Mapping[str, str]
    """The request's key of a slider -> its reference."""
    notes: list[str]
    words: Mapping[str, Any]
    """What the request's words say, for the pictures' provenance."""

    @property
    def tasks(self) -> list[Task]:
        """Of all parts, in order."""
        return [task for part in self.parts for task in part.tasks]

    @property
    def regions(self) -> list[list[RegionInfo] | None]:
        """For each photo the regions of it that are edited; empty for a generation."""
        found: list[list[RegionInfo] | None] = []
        for part in self.parts[:: self.request.n]:
            if part.subject:
                regions = part.subject.described()
                found.append(None if regions is None else [RegionInfo(**one) for one in regions])
        return found
