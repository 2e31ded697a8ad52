"""The HTTP side: reads a request, checks it before any heavy work, and words the reply."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic.json_schema import models_json_schema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bs_ray import __version__
from bs_ray.config import ServeJob
from bs_ray.data import DecodedRow, is_quarantined
from bs_ray.data.decode import decode
from bs_ray.editing.editor import Edit, to_uint8
from bs_ray.serve.replica import Reply
from bs_ray.serve.schema import (
    MAX_IMAGES,
    EditedImage,
    EditReply,
    EditRequest,
    Meta,
    OutputFormat,
    Problem,
    SliderInfo,
    SliderList,
    parse_form,
    parse_json,
)
from bs_ray.sliders.artifact import Card, SliderError

RETRY_AFTER_S = 1
_READY_WITHIN_S = 5.0
_FORM_OVERHEAD_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class Busy(Exception):
    """The engine has no room, or no replica, right now; asking again later is safe."""


class Engine(Protocol):
    """What computes edits: a Ray Serve deployment, or anything like it."""

    async def edit(self, edit: Edit) -> Reply:
        """One photo under one mix of sliders. Raises Busy."""
        ...

    async def ready(self) -> None:
        """Returns once an edit would be computed at once. Raises Busy."""
        ...


def create_app(job: ServeJob, cards: Sequence[Card], engine: Engine) -> FastAPI:
    """The HTTP API of `job` in front of `engine`, whose sliders are `cards`, in order."""
    app = FastAPI(title="bs_ray", version=__version__)
    edits = _Edits(job, cards, engine)

    @app.post("/v1/images/edits", openapi_extra=_EDIT_BODY)
    async def edit(request: Request) -> EditReply:
        """Move sliders on photos."""
        return await edits.reply(request)

    @app.get("/v1/sliders")
    async def sliders() -> SliderList:
        """The sliders that requests may name."""
        return SliderList(data=[_info(card) for card in cards], max_strength=job.max_strength)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """A replica has its base and sliders loaded."""
        try:
            await asyncio.wait_for(engine.ready(), _READY_WITHIN_S)
        except TimeoutError:
            raise Busy from None
        return {"status": "ready"}

    app.add_exception_handler(Exception, _answer_unexpected)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(_LimitBody, max_bytes=_body_bytes(job))
    # FastAPI cannot derive the body of a route that takes JSON and forms.
    derived = app.openapi
    app.openapi = lambda: _with_request_schema(derived())  # type: ignore[method-assign]
    return app


class _Edits:
    """`POST /v1/images/edits`, step by step."""

    def __init__(self, job: ServeJob, cards: Sequence[Card], engine: Engine):
        self.job, self.engine = job, engine
        self.cards = {card.name: card for card in cards}
        # The Editor embeds this one at its start.
        self.prompt = job.editor.prompt
        if self.prompt is None:
            self.prompt = cards[0].target

    async def reply(self, request: Request) -> EditReply:
        start_s = time.perf_counter()
        asked = await _read(request)
        self._check(asked)
        photos = await asyncio.gather(*(self._edit(data, asked) for data in asked.image))
        return EditReply(
            created=int(time.time()),
            data=[EditedImage(b64_json=base64.b64encode(file).decode()) for file, _ in photos],
            meta=Meta(
                batch_rows=max(rows for _, rows in photos),
                seconds=time.perf_counter() - start_s,
                sliders={f"{n}@{self.cards[n].version}": scale for n, scale in asked.mix().items()},
                base_id=next(iter(self.cards.values())).base_id,
                seed=asked.seed,
                notes=self._notes(asked),
            ),
        )

    def _check(self, asked: EditRequest) -> None:
        """What only this server can know to be wrong. Raises Problem 422."""
        limit = self.job.max_strength
        for name, scale in asked.mix().items():
            if name not in self.cards:
                known = list(self.cards)
                detail = f"slider: got {name!r}; expected one of {', '.join(known)}"
                raise Problem(422, "unknown-slider", detail, known=known)
            if abs(scale) > limit:
                detail = f"slider {name}: got scale {scale:g}; expected -{limit:g} to {limit:g}"
                raise Problem(422, "scale-out-of-range", detail, max_strength=limit)
            try:
                self.cards[name].scale_of(scale, self.job.editor.calibrated)
            except SliderError as error:
                raise Problem(422, "scale-out-of-range", str(error)) from None
        if asked.prompt not in (None, "", self.prompt):
            detail = (
                f"prompt: got {asked.prompt[:60]!r}; expected none, or this server's own, "
                f"{self.prompt!r}. Say what to change with `sliders`"
            )
            raise Problem(422, "prompt-not-supported", detail)

    def _notes(self, asked: EditRequest) -> list[str]:
        calibrated = self.job.editor.calibrated
        found = (self.cards[name].beyond(s, calibrated) for name, s in asked.mix().items())
        return [note for note in found if note]

    async def _edit(self, data: bytes, asked: EditRequest) -> tuple[bytes, int]:
        """One photo file -> the edited one, and how many edits were computed with it."""
        photo = await asyncio.to_thread(self._decode, data)
        edit = Edit(photo["sha256"], photo["pixels"], [asked.mix()], asked.seed)
        reply = await self.engine.edit(edit)
        encode = _ENCODERS[asked.output_format]
        file = await asyncio.to_thread(encode, reply.edited.pixels, photo["alpha"])
        return file, reply.batch_rows

    def _decode(self, data: bytes) -> DecodedRow:
        """The photo's row, as in batch. Raises Problem 400 or 413."""
        if len(data) > self.job.max_bytes:
            raise _too_large(f"got {len(data)} bytes", self.job.max_bytes)
        row = decode("image", data, max_pixels=self.job.max_pixels)
        if is_quarantined(row):
            large = row["reason"].startswith("too many pixels")
            status, kind = (413, "too-many-pixels") if large else (400, "bad-image")
            raise Problem(status, kind, f"image: {row['reason']}")
        return row


async def _read(request: Request) -> EditRequest:
    """The body as a request. Raises Problem for one that cannot be understood."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return parse_json(await request.body())
    if media_type != "multipart/form-data":
        got = media_type or "no content type"
        detail = f"body: got {got}; expected multipart/form-data or application/json"
        raise Problem(415, "unsupported-media-type", detail)
    async with request.form(max_files=MAX_IMAGES, max_fields=MAX_IMAGES) as form:
        fields = [
            (name, await value.read() if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
    return parse_form(fields)


# --- pixels to files --------------------------------------------------------------------------
# Pixels are float RGB [H, W, 3] in [0, 255]; alpha is the photo's own, uint8 [H, W], or None.
def _png(pixels: np.ndarray, alpha: np.ndarray | None) -> bytes:
    image = to_uint8(pixels)
    return _save("PNG", image if alpha is None else np.dstack([image, alpha]))


def _jpeg(pixels: np.ndarray, alpha: np.ndarray | None) -> bytes:
    return _save("JPEG", to_uint8(pixels), quality=95)


def _npy(pixels: np.ndarray, alpha: np.ndarray | None) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels.astype(np.float32, copy=False), allow_pickle=False)
    return file.getvalue()


def _save(name: str, image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, name, **options)
    return file.getvalue()


_Encoder = Callable[[np.ndarray, np.ndarray | None], bytes]
_ENCODERS: dict[OutputFormat, _Encoder] = {"png": _png, "jpeg": _jpeg, "npy": _npy}


# --- the size of bodies -----------------------------------------------------------------------
def _body_bytes(job: ServeJob) -> int:
    """A request's photos share `max_bytes`; base64 makes 4 bytes of 3."""
    return job.max_bytes * 4 // 3 + _FORM_OVERHEAD_BYTES


def _too_large(got: str, limit_bytes: int) -> Problem:
    detail = f"body: {got}; expected at most {limit_bytes} bytes"
    return Problem(413, "too-large", detail, max_bytes=limit_bytes)


class _LimitBody:
    """Refuses a body that is announced too large unread, and stops reading one that grows so."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            problem = _too_large(f"got {announced} bytes", self.max_bytes)
            return await _answer(request, problem)(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise _too_large(f"got more than {self.max_bytes} bytes", self.max_bytes)
            return message

        await self.app(scope, counted, send)


# --- errors as problems -----------------------------------------------------------------------
def _answer(
    request: Request, problem: Problem, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = problem.body()
    if request_id := request.headers.get("x-request-id"):  # Ray Serve's proxy sees to one
        body["request_id"] = request_id
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")


async def _answer_problem(request: Request, problem: Any) -> JSONResponse:
    return _answer(request, problem)


async def _answer_http(request: Request, error: Any) -> JSONResponse:
    """Starlette's own: no such path, wrong method, a form that cannot be parsed."""
    return _answer(request, Problem(error.status_code, "http-error", error.detail), error.headers)


async def _answer_busy(request: Request, _: Any) -> JSONResponse:
    detail = f"the server is busy or starting; try again in {RETRY_AFTER_S} s"
    return _answer(request, Problem(503, "busy", detail), {"Retry-After": str(RETRY_AFTER_S)})


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request failed", exc_info=error)
    detail = "the edit failed on the server; its log has the cause under this request's id"
    return _answer(request, Problem(500, "internal-error", detail))


_HANDLERS: dict[type[Exception], Any] = {
    Problem: _answer_problem,
    HTTPException: _answer_http,
    Busy: _answer_busy,
}


# --- descriptions -----------------------------------------------------------------------------
def _info(card: Card) -> SliderInfo:
    fields = card.model_dump(include=set(SliderInfo.model_fields))
    # The training job names buckets and folders, which are nobody's business out here.
    fields["training"] = {k: v for k, v in card.training.items() if k != "job"}
    return SliderInfo(**fields)


_SCHEMAS = "#/components/schemas/"
_FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "sliders": {"type": "string", "description": 'JSON: [{"name": "smile", "scale": 1.5}]'},
        "seed": {"type": "integer"},
        "prompt": {"type": "string"},
        "output_format": {"type": "string", "enum": list(_ENCODERS)},
        "response_format": {"type": "string", "enum": ["b64_json"]},
    },
}
_EDIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": {"$ref": f"{_SCHEMAS}EditRequest"}},
        },
    }
}


def _with_request_schema(document: dict[str, Any]) -> dict[str, Any]:
    _, schemas = models_json_schema(
        [(EditRequest, "validation")], ref_template=_SCHEMAS + "{model}"
    )
    document["components"]["schemas"] |= schemas["$defs"]
    return document
