"""One request's way: which sliders it means, its photos, the tasks for the engine, its pictures."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bs_ray.config import EditorSettings, ServeJob
from bs_ray.editing.editor import Edit, EditError
from bs_ray.images.rows import DecodedRow
from bs_ray.serve.engine.tasks import Busy, DrawTask, EditTask, Event, Result, Task
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.fetch import fetch_image
from bs_ray.serve.http.keys import Key
from bs_ray.serve.http.pictures import read_mask, read_photo, write_picture
from bs_ray.serve.http.problems import Problem, busy
from bs_ray.serve.http.schema import EditRequest, GenerateRequest, ImageReply, ImagesReply, Meta
from bs_ray.serve.tracing import carrier, span
from bs_ray.sliders.slider import SliderError
from bs_ray.storage import StorageError, Store

MOST_PICTURES = 64
"""Of one request."""
_STORE_RETRY_S = 5.0


class Backend(Protocol):
    """What computes: a Ray Serve deployment, or anything like it."""

    async def result(self, task: Task) -> Result:
        """The task's pictures. Raises Busy, SliderError, EditError."""
        ...

    def events(self, task: Task) -> AsyncIterator[Event]:
        """What happens to it, its Result last. Raises as `result`."""
        ...

    async def ready(self) -> None:
        """Returns once a task would be computed at once. Raises Busy."""
        ...

    async def metrics(self) -> str:
        """What all of the cluster has counted, in Prometheus' text format."""
        ...


@dataclass(frozen=True)
class Asker:
    """Whose request it is, and what it said beside its body."""

    key: Key
    request_id: str
    base_url: str
    """Where this server is, for URLs in replies."""
    within_s: float
    """How long the asker waits."""
    since_s: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Planned:
    """A request that was understood."""

    asked: EditRequest | GenerateRequest
    tasks: list[Task]
    photos: list[DecodedRow | None]
    """Of each task."""
    meant: Mapping[str, str]
    """What the request calls a slider -> name@version."""
    notes: list[str]


class Service:
    """Edits and drawings of one job."""

    def __init__(self, job: ServeJob, base_id: str, catalogue: Catalogue, backend: Backend):
        self.job, self.base_id = job, base_id
        self.catalogue, self.backend = catalogue, backend
        self._outputs = Store(job.outputs) if job.outputs else None

    # --- planning: all that can be wrong is found here --------------------------------------------
    async def plan_edit(self, asked: EditRequest, asker: Asker) -> Planned:
        """Tasks, one for each photo and seed. Raises Problem."""
        self._check_prompt(asked.prompt)
        found = await self._sliders(asked, asker.key)
        self._check_size(asked, len(asked.image))
        settings = self._settings(asked)
        with span("decode", photos=len(asked.image)):
            files = [await self._bytes(photo) for photo in asked.image]
            photos = list(await asyncio.gather(*(read_photo(f, self.job) for f in files)))
            mask = None
            if asked.mask is not None:
                mask = await read_mask(await self._bytes(asked.mask), photos[0], self.job)
        mixes, seeds = _exact(asked, found), [asked.seed + i for i in range(asked.n)]
        shared = self._shared(asked, found, asker)
        tasks: list[Task] = [
            EditTask(
                edit=Edit(
                    photo["sha256"], photo["pixels"], mixes, seed,
                    mask if index == 0 else None, settings,
                ),
                **shared,
            )
            for index, photo in enumerate(photos)
            for seed in seeds
        ]  # fmt: skip
        notes = [photo["note"] for photo in photos if photo["note"]]
        return Planned(
            asked, tasks, [photo for photo in photos for _ in seeds],
            {name: listed.exact for name, listed in found.items()},
            list(dict.fromkeys([*self._beyond(asked, found), *notes])),
        )  # fmt: skip

    async def plan_drawing(self, asked: GenerateRequest, asker: Asker) -> Planned:
        """Tasks, one for each seed. Raises Problem."""
        found = await self._sliders(asked, asker.key)
        self._check_size(asked, 1)
        tasks: list[Task] = [
            DrawTask(
                prompt=asked.prompt, mixes=_exact(asked, found), seed=asked.seed + i,
                steps=asked.steps or 20, guidance_scale=asked.guidance_scale,
                **self._shared(asked, found, asker),
            )
            for i in range(asked.n)
        ]  # fmt: skip
        meant = {name: listed.exact for name, listed in found.items()}
        return Planned(asked, tasks, [None] * asked.n, meant, self._beyond(asked, found))

    async def _sliders(self, asked: EditRequest | GenerateRequest, key: Key) -> dict[str, Listed]:
        """What the request calls a slider -> that slider. Raises Problem."""
        if asked.model is not None and asked.model not in (self.job.base, self.base_id):
            detail = f"model: got {asked.model!r}; expected none, or {self.job.base!r}"
            raise Problem(422, "unknown-model", detail)
        scales = _scales(asked)
        if len(scales) > (most := self.job.editor.resident_sliders):
            detail = f"sliders: got {len(scales)}; expected at most {most} at once"
            raise Problem(422, "too-many-sliders", detail)
        found: dict[str, Listed] = {}
        for name, values in scales.items():
            try:
                listed = await self.catalogue.find(name)
            except StorageError as error:
                raise as_problem(error) or error from error
            if listed is None or not key.allows(listed.card.name):
                known = [n for n in await self.catalogue.listed() if key.allows(n)]
                shown = f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}"
                detail = f"slider: got {name!r}; expected one of {shown}"
                raise Problem(422, "unknown-slider", detail)
            for scale in values:
                self._check_scale(listed, scale)
            found[name] = listed
        return found

    def _check_scale(self, listed: Listed, scale: float) -> None:
        limit = self.job.max_strength
        if abs(scale) > limit:
            detail = (
                f"slider {listed.card.name}: got scale {scale:g}; expected -{limit:g} to {limit:g}"
            )
            raise Problem(422, "scale-out-of-range", detail, max_strength=limit)
        try:
            listed.card.scale_of(scale, self.job.editor.calibrated)
        except SliderError as error:
            raise Problem(422, "scale-out-of-range", str(error)) from None

    def _check_prompt(self, prompt: str | None) -> None:
        if prompt not in (None, "", self.job.editor.prompt):
            raise Problem(
                422, "prompt-not-supported",
                f"prompt: got {prompt[:60]!r}; expected none, or this server's own, "
                f"{self.job.editor.prompt!r}. Say what to change with `sliders`",
            )  # fmt: skip

    def _check_size(self, asked: EditRequest | GenerateRequest, photos: int) -> None:
        mixes = len(asked.mixes())
        if mixes > self.job.max_batch_rows:
            detail = f"sweep: got {mixes} scales; expected at most {self.job.max_batch_rows}"
            raise Problem(422, "too-many-pictures", detail)
        if (count := photos * asked.n * mixes) > MOST_PICTURES:
            detail = (
                f"got {photos} photos x {asked.n} seeds x {mixes} scales = {count} pictures; "
                f"expected at most {MOST_PICTURES} in one request"
            )
            raise Problem(422, "too-many-pictures", detail)
        if asked.size != "auto":
            detail = f"size: got {asked.size!r}; expected auto: a photo keeps its own size"
            raise Problem(422, "size-not-supported", detail)
        if asked.response_format == "url" and self._outputs is None:
            detail = "response_format: got 'url'; expected b64_json: this server keeps no pictures"
            raise Problem(422, "no-urls", detail)

    def _settings(self, asked: EditRequest) -> EditorSettings | None:
        changes = asked.editor_changes()
        if not changes:
            return None
        return EditorSettings.model_validate({**self.job.editor.model_dump(), **changes})

    async def _bytes(self, photo: bytes | str) -> bytes:
        if isinstance(photo, bytes):
            return photo
        return await fetch_image(photo, self.job.image_hosts, self.job.max_bytes)

    def _shared(
        self, asked: EditRequest | GenerateRequest, found: Mapping[str, Listed], asker: Asker
    ) -> dict[str, Any]:
        """What all tasks of a request have in common."""
        return {
            "sliders": [listed.reference for listed in found.values()],
            "within_s": asker.within_s - (time.perf_counter() - asker.since_s),
            "partials": asked.partial_images if asked.stream else 0,
            "floats": asked.output_format == "npy",
            "trace": carrier(),
        }

    def _beyond(
        self, asked: EditRequest | GenerateRequest, found: Mapping[str, Listed]
    ) -> list[str]:
        calibrated = self.job.editor.calibrated
        return [
            note
            for name, scales in _scales(asked).items()
            for scale in scales
            if (note := found[name].card.beyond(scale, calibrated))
        ]

    # --- computing ------------------------------------------------------------------------------
    async def reply(self, planned: Planned, asker: Asker) -> ImagesReply:
        """All pictures at once. Raises Problem."""
        try:
            results = await _all([self.backend.result(task) for task in planned.tasks])
        except Exception as error:
            if problem := as_problem(error):
                raise problem from error
            raise
        return await self.worded(planned, results, asker)

    async def worded(
        self, planned: Planned, results: Sequence[Result], asker: Asker
    ) -> ImagesReply:
        """Results as the reply."""
        asked = planned.asked
        with span("encode"):
            files = await asyncio.to_thread(self._files, planned, results)
            data = [await self._image(file, asked, asker) for file in files]
        fixed = {planned.meant[slider.name]: slider.scale for slider in asked.sliders}
        return ImagesReply(
            created=int(time.time()),
            data=data,
            meta=Meta(
                request_id=asker.request_id,
                batch_rows=max(result.batch_rows for result in results),
                queue_seconds=max(result.queue_s for result in results),
                seconds=time.perf_counter() - asker.since_s,
                sliders=fixed,
                sweep=asked.sweep.scales if asked.sweep else [],
                base_id=self.base_id,
                seed=asked.seed,
                notes=planned.notes,
            ),
        )

    def _files(self, planned: Planned, results: Sequence[Result]) -> list[bytes]:
        asked, files = planned.asked, []
        for index, (photo, result) in enumerate(zip(planned.photos, results, strict=True)):
            for mix, output in zip(asked.mixes(), result.outputs, strict=True):
                made = {
                    "sliders": {planned.meant[name]: scale for name, scale in mix.items()},
                    "seed": asked.seed + index % asked.n,
                    "base_id": self.base_id,
                }
                files.append(
                    write_picture(
                        output.pixels, asked.output_format, asked.output_compression, photo, made
                    )
                )
        return files

    async def _image(
        self, file: bytes, asked: EditRequest | GenerateRequest, asker: Asker
    ) -> ImageReply:
        if asked.response_format == "b64_json" or self._outputs is None:
            return ImageReply(b64_json=base64.b64encode(file).decode())
        # The name is the permission: 128 random bits.
        name = f"{secrets.token_hex(16)}.{asked.output_format}"
        await asyncio.to_thread(self._outputs.write, name, file)
        return ImageReply(url=f"{asker.base_url}/v1/files/{name}")

    async def file(self, name: str) -> bytes:
        """A picture that was asked for as a URL. Raises Problem 404."""
        try:
            if self._outputs is not None:
                return await asyncio.to_thread(self._outputs.read, name)
        except FileNotFoundError:
            pass
        raise Problem(404, "no-such-file", "file: got a name that is not, or no longer, here")


def _scales(asked: EditRequest | GenerateRequest) -> dict[str, list[float]]:
    """What the request calls a slider -> the scales it asks of it."""
    scales = {slider.name: [slider.scale] for slider in asked.sliders}
    if asked.sweep:
        scales[asked.sweep.name] = list(asked.sweep.scales)
    return scales


def _exact(
    asked: EditRequest | GenerateRequest, found: Mapping[str, Listed]
) -> list[dict[str, float]]:
    """The request's mixes under the references that the engine loads sliders by."""
    return [{found[n].reference: s for n, s in mix.items()} for mix in asked.mixes()]


async def _all(coroutines: Sequence[Any]) -> list[Result]:
    """Their results; where one fails or the asker leaves, the others are called off."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def as_problem(error: BaseException) -> Problem | None:
    """The Problem that an error of the engine stands for; None for a bug."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Busy):
        # Ray sends errors of replicas as a class of its own around them.
        cause = getattr(error, "cause", error)
        return busy(cause.detail, cause.retry_after_s)
    if isinstance(error, StorageError):
        return busy("a slider cannot be fetched right now", _STORE_RETRY_S)
    if isinstance(error, SliderError | EditError):
        return Problem(422, "cannot-edit", str(getattr(error, "cause", error)))
    return None
