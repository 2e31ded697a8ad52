"""One request's way: its sliders, its photos, the tasks that the engine gets, its pictures."""

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
from bs_ray.serve.engine.tasks import Busy, EditTask, Event, GenerateTask, Result, Task
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.fetch import fetch_image
from bs_ray.serve.http.keys import Key
from bs_ray.serve.http.named import AnySlider
from bs_ray.serve.http.pictures import read_mask, read_photo, write_picture
from bs_ray.serve.http.problems import Problem, busy
from bs_ray.serve.http.schema import (
    EditRequest,
    GenerateRequest,
    ImageReply,
    ImagesReply,
    Meta,
)
from bs_ray.serve.tracing import carrier, span
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.words import slider_of_words, words_said
from bs_ray.storage import StorageError, Store

MAX_PICTURES = 64
"""The most pictures that one request may ask for."""
_STORE_RETRY_S = 5.0
_PREDICTIONS = 4
"""A task may ask for so many predictions a step for each of the server's `max_batch_rows`; each
prompt of a slider of words is one."""


class Backend(Protocol):
    """The side that computes: a Ray Serve deployment, or anything with its methods."""

    async def result(self, task: Task) -> Result:
        """The task's pictures. Raises Busy, SliderError, EditError."""
        ...

    def events(self, task: Task) -> AsyncIterator[Event]:
        """What happens to the task, its Result last. Raises as `result` does."""
        ...

    async def ready(self) -> None:
        """Returns once a task would be computed at once. Raises Busy."""
        ...

    async def metrics(self) -> str:
        """What the whole cluster has counted, in Prometheus' text format."""
        ...


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what the request says beside its body."""

    key: Key
    request_id: str
    base_url: str
    """The address of this server, for URLs in replies."""
    within_s: float
    """How long the caller waits."""
    since_s: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Prepared:
    """A request without mistakes, as tasks for the engine."""

    request: EditRequest | GenerateRequest
    tasks: list[Task]
    photos: list[DecodedRow | None]
    """The photo of each task; None for a generation."""
    resolved: Mapping[str, str]
    """The request's key of a slider -> its reference."""
    notes: list[str]
    words: Mapping[str, Any]
    """What the request's words say, for the pictures' provenance."""


class Service:
    """The edits and generations that one job serves."""

    def __init__(self, job: ServeJob, base_id: str, catalogue: Catalogue, backend: Backend):
        self.job, self.base_id = job, base_id
        self.catalogue, self.backend = catalogue, backend
        self._outputs = Store(job.outputs) if job.outputs else None

    # --- preparing: mistakes in a request are found here --------------------------------------
    async def prepare_edit(self, request: EditRequest, caller: Caller) -> Prepared:
        """Tasks, one for each photo and seed. Raises Problem."""
        self._check_prompt(request.prompt)
        found = await self._sliders(request, caller.key)
        self._check_size(request, len(request.image))
        settings = self._settings(request)
        with span("decode", photos=len(request.image)):
            files = [await self._bytes(photo) for photo in request.image]
            photos = list(await asyncio.gather(*(read_photo(f, self.job) for f in files)))
            mask = None
            if request.mask is not None:
                mask = await read_mask(await self._bytes(request.mask), photos[0], self.job)
        mixes, seeds = self._mixes(request, found), [request.seed + i for i in range(request.n)]
        shared = self._shared(request, found, caller)
        tasks: list[Task] = [
            EditTask(
                edit=Edit(
                    photo["sha256"],
                    photo["pixels"],
                    mixes,
                    seed,
                    mask if index == 0 else None,
                    settings,
                ),
                **shared,
            )
            for index, photo in enumerate(photos)
            for seed in seeds
        ]
        notes = [photo["note"] for photo in photos if photo["note"]]
        return Prepared(
            request,
            tasks,
            [photo for photo in photos for _ in seeds],
            {name: listed.reference for name, listed in found.items()},
            [*_notes(mixes), *dict.fromkeys(notes)],
            words_said(listed.card for listed in found.values()),
        )

    async def prepare_generation(self, request: GenerateRequest, caller: Caller) -> Prepared:
        """Tasks, one for each seed. Raises Problem."""
        found = await self._sliders(request, caller.key)
        self._check_size(request, 1)
        mixes = self._mixes(request, found)
        tasks: list[Task] = [
            GenerateTask(
                prompt=request.prompt,
                mixes=mixes,
                seed=request.seed + i,
                steps=request.steps or 20,
                guidance_scale=request.guidance_scale,
                **self._shared(request, found, caller),
            )
            for i in range(request.n)
        ]
        resolved = {name: listed.reference for name, listed in found.items()}
        words = words_said(listed.card for listed in found.values())
        return Prepared(request, tasks, [None] * request.n, resolved, _notes(mixes), words)

    async def _sliders(self, request: EditRequest | GenerateRequest, key: Key) -> dict[str, Listed]:
        """The request's key of a slider -> that slider. Raises Problem."""
        if request.model is not None and request.model not in (self.job.base, self.base_id):
            detail = f"model: got {request.model!r}; expected none, or {self.job.base!r}"
            raise Problem(422, "unknown-model", detail)
        wanted = request.named
        if len(wanted) > (limit := self.job.editor.resident_sliders):
            detail = f"sliders: got {len(wanted)}; expected at most {limit} at once"
            raise Problem(422, "too-many-sliders", detail)
        found: dict[str, Listed] = {}
        for name, slider in wanted.items():
            if slider.name is None:
                found[name] = self._words(slider, key)
                continue
            try:
                listed = await self.catalogue.find(name)
            except StorageError as error:
                raise as_problem(error) or error from error
            if listed is None or not key.allows(listed.card.name):
                known = [n for n in await self.catalogue.listed() if key.allows(n)]
                shown = f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}"
                detail = f"slider: got {name!r}; expected one of {shown}"
                raise Problem(422, "unknown-slider", detail)
            found[name] = listed
        self._check_predictions(request, found)
        return found

    def _words(self, slider: AnySlider, key: Key) -> Listed:
        """The slider of some words. Raises Problem."""
        if not self.job.words or not key.allows("words"):
            known = "a name of /v1/sliders: no words" if self.job.words else "a name: no words here"
            raise Problem(422, "no-words", f"slider: got words; expected {known}")
        try:
            words = slider.words
        except ValueError:
            words = None
        if words is None:
            detail = f"slider: got {slider.positive!r} for both prompts; expected two that differ"
            raise Problem(422, "wrong-value", detail)
        if words.target is None:
            words = words.model_copy(update={"target": self.job.editor.prompt})
        return Listed(slider_of_words(words, self.job.base, self.base_id).card, "")

    def _check_predictions(
        self, request: EditRequest | GenerateRequest, found: Mapping[str, Listed]
    ) -> None:
        """Raise Problem where a step would ask for too many predictions."""
        most = _PREDICTIONS * self.job.max_batch_rows
        count = sum(1 + sum(len(found[k].card.pulls) for k in mix) for mix in request.mixes())
        if count > most:
            detail = f"sliders: got words that take {count} predictions a step; expected {most}"
            raise Problem(422, "too-many-pictures", f"{detail}: fewer words, or fewer scales")

    def _mixes(
        self, request: EditRequest | GenerateRequest, found: Mapping[str, Listed]
    ) -> list[Mix]:
        """The request's strengths as the mixes that the engine computes. Raises Problem."""
        limit = self.job.max_strength
        cards = {listed.reference: listed.card for listed in found.values()}
        mixes = []
        for strengths in request.mixes():
            for name, strength in strengths.items():
                if abs(strength) > limit:
                    detail = (
                        f"slider {found[name].card.name}: got scale {strength:g}; expected "
                        f"-{limit:g} to {limit:g}"
                    )
                    raise Problem(422, "scale-out-of-range", detail, max_strength=limit)
            exact = {found[name].reference: strength for name, strength in strengths.items()}
            try:
                mixes.append(Mix.of(exact, cards, self.job.editor.calibrated))
            except SliderError as error:
                raise Problem(422, "scale-out-of-range", str(error)) from None
        return mixes

    def _check_prompt(self, prompt: str | None) -> None:
        if prompt not in (None, "", self.job.editor.prompt):
            raise Problem(
                422,
                "prompt-not-supported",
                f"prompt: got {prompt[:60]!r}; expected none, or this server's own, "
                f"{self.job.editor.prompt!r}. Say what to change with `sliders`",
            )

    def _check_size(self, request: EditRequest | GenerateRequest, photos: int) -> None:
        mixes = len(request.mixes())
        if mixes > self.job.max_batch_rows:
            detail = f"sweep: got {mixes} scales; expected at most {self.job.max_batch_rows}"
            raise Problem(422, "too-many-pictures", detail)
        if (count := photos * request.n * mixes) > MAX_PICTURES:
            detail = (
                f"got {photos} photos x {request.n} seeds x {mixes} scales = {count} pictures; "
                f"expected at most {MAX_PICTURES} in one request"
            )
            raise Problem(422, "too-many-pictures", detail)
        if request.size != "auto":
            detail = f"size: got {request.size!r}; expected auto: a photo keeps its own size"
            raise Problem(422, "size-not-supported", detail)
        if request.response_format == "url" and self._outputs is None:
            detail = "response_format: got 'url'; expected b64_json: this server keeps no pictures"
            raise Problem(422, "no-urls", detail)

    def _settings(self, request: EditRequest) -> EditorSettings | None:
        changes = request.editor_changes()
        if not changes:
            return None
        return EditorSettings.model_validate({**self.job.editor.model_dump(), **changes})

    async def _bytes(self, photo: bytes | str) -> bytes:
        if isinstance(photo, bytes):
            return photo
        return await fetch_image(photo, self.job.image_hosts, self.job.max_bytes)

    def _shared(
        self, request: EditRequest | GenerateRequest, found: Mapping[str, Listed], caller: Caller
    ) -> dict[str, Any]:
        """What all tasks of a request have in common."""
        return {
            "sliders": {one.reference: one.place for one in found.values() if one.place},
            "words": {one.reference: one.card for one in found.values() if one.card.pulls},
            "within_s": caller.within_s - (time.perf_counter() - caller.since_s),
            "partials": request.partial_images if request.stream else 0,
            "floats": request.output_format == "npy",
            "trace": carrier(),
        }

    # --- computing ------------------------------------------------------------------------------
    async def reply(self, prepared: Prepared, caller: Caller) -> ImagesReply:
        """All pictures at once. Raises Problem."""
        try:
            results = await _all([self.backend.result(task) for task in prepared.tasks])
        except Exception as error:
            if problem := as_problem(error):
                raise problem from error
            raise
        return await self.reply_of(prepared, results, caller)

    async def reply_of(
        self, prepared: Prepared, results: Sequence[Result], caller: Caller
    ) -> ImagesReply:
        """The reply with these results."""
        request = prepared.request
        with span("encode"):
            files = await asyncio.to_thread(self._files, prepared, results)
            data = [await self._image(file, request, caller) for file in files]
        fixed = {prepared.resolved[slider.key]: slider.scale for slider in request.sliders}
        return ImagesReply(
            created=int(time.time()),
            data=data,
            meta=Meta(
                request_id=caller.request_id,
                batch_rows=max(result.batch_rows for result in results),
                queue_seconds=max(result.queue_s for result in results),
                seconds=time.perf_counter() - caller.since_s,
                sliders=fixed,
                sweep=request.sweep.scales if request.sweep else [],
                base_id=self.base_id,
                seed=request.seed,
                notes=prepared.notes,
            ),
        )

    def _files(self, prepared: Prepared, results: Sequence[Result]) -> list[bytes]:
        request, files = prepared.request, []
        for index, (photo, result) in enumerate(zip(prepared.photos, results, strict=True)):
            for mix, output in zip(request.mixes(), result.outputs, strict=True):
                made = {
                    "sliders": {prepared.resolved[name]: scale for name, scale in mix.items()},
                    "seed": request.seed + index % request.n,
                    "base_id": self.base_id,
                    **({"words": prepared.words} if prepared.words else {}),
                }
                files.append(
                    write_picture(
                        output.pixels,
                        request.output_format,
                        request.output_compression,
                        photo,
                        made,
                    )
                )
        return files

    async def _image(
        self, file: bytes, request: EditRequest | GenerateRequest, caller: Caller
    ) -> ImageReply:
        if request.response_format == "b64_json" or self._outputs is None:
            return ImageReply(b64_json=base64.b64encode(file).decode())
        # Whoever knows the name may read the file; it has 128 random bits.
        name = f"{secrets.token_hex(16)}.{request.output_format}"
        await asyncio.to_thread(self._outputs.write, name, file)
        return ImageReply(url=f"{caller.base_url}/v1/files/{name}")

    async def file(self, name: str) -> bytes:
        """A picture that a request wanted as a URL. Raises Problem 404."""
        try:
            if self._outputs is not None:
                return await asyncio.to_thread(self._outputs.read, name)
        except FileNotFoundError:
            pass
        detail = "file: got a name of which this server has no file, or no longer; ask again"
        raise Problem(404, "no-such-file", detail)


def _notes(mixes: Sequence[Mix]) -> list[str]:
    """Which strengths are beyond their slider's usable range, each once."""
    return list(dict.fromkeys(note for mix in mixes for note in mix.notes))


async def _all(coroutines: Sequence[Any]) -> list[Result]:
    """The coroutines' results. Where one fails, or the caller leaves, the others are cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def as_problem(error: BaseException) -> Problem | None:
    """What an error of the engine means to the caller; None for a bug."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Busy):
        # Ray wraps an error of a replica in a class of its own.
        cause = getattr(error, "cause", error)
        return busy(cause.detail, cause.retry_after_s)
    if isinstance(error, StorageError):
        return busy("a slider cannot be fetched right now", _STORE_RETRY_S)
    if isinstance(error, SliderError | EditError):
        return Problem(422, "cannot-edit", str(getattr(error, "cause", error)))
    return None
