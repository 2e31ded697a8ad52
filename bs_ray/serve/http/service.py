"""One request's way: its sliders, its photos, the tasks that the engine gets, its pictures."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np

from bs_ray.config import EditorSettings, ServeJob
from bs_ray.editing.locate import Sight, chosen_faces
from bs_ray.editing.views import Edit, EditError
from bs_ray.images.faces import CenterFace, FacesUnavailable, need_centerface
from bs_ray.images.rows import DecodedRow
from bs_ray.serve.engine.tasks import Busy, EditTask, Event, GenerateTask, Result, Task
from bs_ray.serve.http.boxes import MAX_BOXES, FaceBox, FacesReply
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.fetch import fetch_image
from bs_ray.serve.http.keys import Key
from bs_ray.serve.http.named import AnySlider
from bs_ray.serve.http.pictures import lost_in, read_mask, read_photo
from bs_ray.serve.http.prepared import Part, Prepared
from bs_ray.serve.http.problems import Problem, busy
from bs_ray.serve.http.schema import (
    EditRequest,
    FacesRequest,
    GenerateRequest,
    ImageReply,
    ImagesReply,
    Meta,
)
from bs_ray.serve.http.subject import Subject, no_detector, subject_of
from bs_ray.serve.tracing import carrier, span
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.words import card_of_words, words_said
from bs_ray.storage import StorageError, Store

MAX_PICTURES = 64
"""The most pictures that one request may ask for."""
_STORE_RETRY_S = 5.0
_THREADS = 4
"""Photos that a process cuts, pastes and encodes at once; each takes some hundred megabytes."""
_PREDICTIONS = 4
"""A task may ask for so many predictions a step for each of the server's `max_batch_rows`; each
prompt of a slider of words is one."""
_Made = TypeVar("_Made")


class Backend(Protocol):
    """The side that computes: a Ray Serve deployment, or anything with its methods."""

    async def result(self, task: Task) -> Result:
        """The task's pictures. Raises Busy, SliderError, EditError."""
        ...

    def events(self, task: Task) -> AsyncIterator[Event]:
        """What happens to the task, its Result last. Raises as `result` does."""
        ...

    async def sight(self) -> Sight:
        """What has to be known of the base to cut photos for it. Raises Busy."""
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


class Service:
    """The edits and generations that one job serves."""

    def __init__(self, job: ServeJob, base_id: str, catalogue: Catalogue, backend: Backend):
        """Raises FacesUnavailable where the job finds faces and cannot."""
        self.job, self.base_id = job, base_id
        self.catalogue, self.backend = catalogue, backend
        self._outputs = Store(job.outputs) if job.outputs else None
        self._detector = cache(CenterFace)
        self.finds_faces = _can_find_faces()
        if job.editor.region == "face":
            self._detector()
        self._sight: Sight | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "photos")

    async def aside(self, make: Callable[..., _Made], *given: Any) -> _Made:
        """What a function of photos returns, computed beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, make, *given)

    # --- preparing: mistakes in a request are found here --------------------------------------
    async def prepare_edit(self, request: EditRequest, caller: Caller) -> Prepared:
        """Tasks, for each photo and seed. Raises Problem."""
        self._check_prompt(request.prompt)
        found = await self._sliders(request, caller.key)
        self._check_size(request, len(request.image))
        settings = EditorSettings.model_validate(
            {**self.job.editor.model_dump(), **request.editor_changes()}
        )
        mixes = self._mixes(request, found)
        with span("decode", photos=len(request.image)):
            subjects = await self._subjects(request, settings)
        shared = self._shared(request, found, caller)
        parts = [
            Part(seed, self._edits(subject, mixes, seed, settings, shared), subject)
            for subject in subjects
            for seed in range(request.seed, request.seed + request.n)
        ]
        photos = [subject.photo for subject in subjects]
        notes = [note for s in subjects for note in (s.photo["note"], s.note) if note]
        notes += [note for photo in photos for note in lost_in(photo, request.output_format)]
        resolved = {name: listed.reference for name, listed in found.items()}
        words = words_said(listed.card for listed in found.values())
        notes = [*_notes(mixes), *dict.fromkeys(notes)]
        return Prepared(request, parts, resolved, notes, words)

    async def _subjects(self, request: EditRequest, settings: EditorSettings) -> list[Subject]:
        """The request's photos, decoded and cut. Raises Problem."""
        files = [await self._bytes(photo) for photo in request.image]
        photos = list(await asyncio.gather(*(read_photo(f, self.job) for f in files)))
        _check_own_size(request.size, photos)
        masks: list[np.ndarray | None] = [None] * len(photos)
        if request.mask is not None:
            masks[0] = await read_mask(await self._bytes(request.mask), photos[0], self.job)
        shared = settings, await self._base_sight(), self._detector, request.boxes
        cuts = [self.aside(subject_of, *one, *shared) for one in zip(photos, masks, strict=True)]
        return list(await asyncio.gather(*cuts))

    async def _base_sight(self) -> Sight:
        if self._sight is None:
            try:
                self._sight = await self.backend.sight()
            except Busy as error:
                raise as_problem(error) or error from error
        return self._sight

    def _edits(
        self,
        subject: Subject,
        mixes: list[Mix],
        seed: int,
        settings: EditorSettings,
        shared: Mapping[str, Any],
    ) -> list[Task]:
        settings = settings.model_copy(update={"region": "photo"})
        edits = [
            Edit(key, view, mixes, seed, settings=settings, cut=True)
            for key, view in zip(subject.keys, subject.views, strict=True)
        ]
        weight = EditTask(edits=edits[:1], **shared).weight
        most = max(1, self.job.max_batch_rows // max(1, weight))
        some = [edits[first : first + most] for first in range(0, len(edits), most)]
        return [EditTask(edits=one, **shared) for one in some]

    async def faces(self, request: FacesRequest) -> FacesReply:
        """The faces of a photo that an edit would find. Raises Problem."""
        [given] = request.image
        photo = await read_photo(await self._bytes(given), self.job)
        pixels = photo["pixels"]
        try:
            found = await self.aside(lambda: self._detector().find(pixels))
        except FacesUnavailable as error:
            raise no_detector("got a photo whose faces are to be found") from error
        faces = chosen_faces(found, self.job.editor.model_copy(update={"faces": MAX_BOXES}))
        return FacesReply(
            width=pixels.shape[1],
            height=pixels.shape[0],
            faces=[FaceBox.of(face) for face in faces],
            region=self.job.editor.region,
        )

    async def prepare_generation(self, request: GenerateRequest, caller: Caller) -> Prepared:
        """Tasks, one for each seed. Raises Problem."""
        found = await self._sliders(request, caller.key)
        self._check_size(request, 1)
        mixes = self._mixes(request, found)
        parts = []
        for seed in range(request.seed, request.seed + request.n):
            task = GenerateTask(
                prompt=request.prompt,
                mixes=mixes,
                seed=seed,
                steps=request.steps or 20,
                guidance_scale=request.guidance_scale,
                floats=request.output_format == "npy",
                **self._shared(request, found, caller),
            )
            parts.append(Part(seed, [task]))
        resolved = {name: listed.reference for name, listed in found.items()}
        words = words_said(listed.card for listed in found.values())
        return Prepared(request, parts, resolved, _notes(mixes), words)

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
        return Listed(card_of_words(words, self.job.base, self.base_id), "")

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
        if request.size != "auto" and isinstance(request, GenerateRequest):
            detail = f"size: got {request.size!r}; expected auto: the base has a size of its own"
            raise Problem(422, "size-not-supported", detail)
        if request.response_format == "url" and self._outputs is None:
            detail = "response_format: got 'url'; expected b64_json: this server keeps no pictures"
            raise Problem(422, "no-urls", detail)

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
            data = await self._images(prepared, results, caller)
        fixed = {prepared.resolved[slider.key]: slider.scale for slider in request.sliders}
        return ImagesReply(
            created=int(time.time()),
            data=data,
            meta=Meta(
                request_id=caller.request_id,
                batch_rows=max((result.batch_rows for result in results), default=0),
                queue_seconds=max((result.queue_s for result in results), default=0),
                seconds=time.perf_counter() - caller.since_s,
                sliders=fixed,
                sweep=request.sweep.scales if request.sweep else [],
                base_id=self.base_id,
                seed=request.seed,
                regions=prepared.regions,
                notes=list(dict.fromkeys([*prepared.notes, *_made_notes(results)])),
            ),
        )

    async def _images(
        self, prepared: Prepared, results: Sequence[Result], caller: Caller
    ) -> list[ImageReply]:
        """The pictures of all parts and mixes, in order."""
        request, left = prepared.request, iter(results)
        mixes = request.mixes()
        encoding = []
        for part in prepared.parts:
            its = [next(left) for _ in part.tasks]
            for number, mix in enumerate(mixes):
                made = {
                    "sliders": {prepared.resolved[name]: scale for name, scale in mix.items()},
                    "seed": part.seed,
                    "base_id": self.base_id,
                    **({"words": prepared.words} if prepared.words else {}),
                }
                encoding.append(self.aside(part.file, request, its, number, made))
        files = await asyncio.gather(*encoding)
        return [await self._image(file, request, caller) for file in files]

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


def _check_own_size(size: str, photos: Sequence[DecodedRow]) -> None:
    """Raise Problem 422 for a size that a photo does not have."""
    for photo in photos:
        height, width = photo["pixels"].shape[:2]
        if size not in ("auto", f"{width}x{height}"):
            detail = f"size: got {size!r}; expected auto or {width}x{height}, the photo's own size"
            raise Problem(422, "size-not-supported", detail)


def _made_notes(results: Sequence[Result]) -> list[str]:
    """What the engine has to say of the pictures."""
    return [note for result in results for note in result.notes]


def _can_find_faces() -> bool:
    try:
        need_centerface()
    except FacesUnavailable:
        return False
    return True


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
