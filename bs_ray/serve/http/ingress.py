"""The routes of the HTTP API. What a request means is decided in `service`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, Path, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from pydantic.json_schema import models_json_schema
from starlette.datastructures import UploadFile

from bs_ray import __version__
from bs_ray.config import ServeJob
from bs_ray.serve import playground
from bs_ray.serve.engine.tasks import Busy, GenerateTask
from bs_ray.serve.http import sse
from bs_ray.serve.http.boxes import FacesReply
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.idempotency import Replies
from bs_ray.serve.http.keys import Key, KeyRing, Limiter
from bs_ray.serve.http.middleware import Middleware
from bs_ray.serve.http.pictures import MEDIA_TYPES, strip
from bs_ray.serve.http.prepared import Prepared
from bs_ray.serve.http.problems import MEDIA_TYPE, Problem, ProblemBody, busy, handle_problems
from bs_ray.serve.http.schema import (
    MAX_IMAGES,
    EditRequest,
    FacesRequest,
    GenerateRequest,
    ImagesReply,
    ModelInfo,
    ModelList,
    SliderDetail,
    SliderInfo,
    SliderList,
    Status,
    parse_form,
    parse_json,
)
from bs_ray.serve.http.service import Backend, Caller, Service, as_problem
from bs_ray.serve.metrics import IngressMetrics
from bs_ray.serve.tracing import span
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix

_READY_WITHIN_S = 5.0
_FORM_OVERHEAD_BYTES = 64 << 10
_FORM_FIELDS = 128
# The playground's page contains its script and style; its pictures are blobs that it makes.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_app(
    job: ServeJob, base_id: str, catalogue: Catalogue, backend: Backend, metrics: IngressMetrics
) -> FastAPI:
    """The HTTP API of `job` in front of `backend`."""
    app = FastAPI(title="bs_ray", version=__version__, docs_url="/docs", redoc_url=None)
    service = Service(job, base_id, catalogue, backend)
    door = _Door(job, metrics)
    _add_images(app, service, door)
    _add_lists(app, service, door)
    _add_health(app, backend, door)
    handle_problems(app)
    if job.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=job.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "X-Request-Timeout",
            ],
        )
    app.add_middleware(Middleware, max_bytes=_body_bytes(job), metrics=metrics)
    _describe_bodies(app)
    return app


class _Door:
    """Who may call, and how often."""

    def __init__(self, job: ServeJob, metrics: IngressMetrics):
        self._job, self._metrics = job, metrics
        self._ring = KeyRing.load(job.keys)
        self._limiter = Limiter()

    async def key(self, http: Request) -> Key:
        """The key of a request. Raises Problem 401."""
        return await self._ring.authenticate(http.headers.get("authorization"))

    async def caller(self, http: Request, timeout_s: float | None) -> Caller:
        """Who sent a request, which counts against the key's rate. Raises Problem 401 and 429."""
        key = await self.key(http)
        try:
            self._limiter.take(key)
        except Problem:
            self._metrics.rate_limited(key.id)
            raise
        within_s = min(timeout_s or self._job.deadline_s, self._job.deadline_s)
        base_url = str(http.base_url).rstrip("/")
        return Caller(key, http.state.request_id, base_url, within_s)


_Timeout = Annotated[
    float | None,
    Header(
        alias="X-Request-Timeout",
        gt=0,
        le=86_400,
        description="Seconds that you wait. A request that would be late is refused at once.",
    ),
]
_SliderName = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        min_length=1,
        description="The same request with the same key is computed once, and gets the same reply.",
    ),
]


class _Answers:
    """Replies to requests for pictures. Under an idempotency key each is computed once."""

    def __init__(self, service: Service):
        self._service = service
        self._replies: Replies[bytes] = Replies(size_of=len)

    async def answer(
        self,
        prepare: Callable[[], Awaitable[Prepared]],
        request: EditRequest | GenerateRequest,
        caller: Caller,
        idempotency_key: str | None,
    ) -> Response:
        """The reply, in the form that the request asks for."""
        if request.stream:
            events = await sse.begin(self._service, await prepare(), caller)
            return StreamingResponse(events, media_type="text/event-stream")

        async def compute() -> bytes:
            reply = await self._service.reply(await prepare(), caller)
            return reply.model_dump_json(exclude_none=True).encode()

        if idempotency_key is None:
            return Response(await compute(), media_type="application/json")
        digest = hashlib.sha256(repr(request).encode()).hexdigest()
        body, replayed = await self._replies.once(caller.key.id, idempotency_key, digest, compute)
        headers = {"idempotent-replayed": "true"} if replayed else {}
        return Response(body, media_type="application/json", headers=headers)


def _add_images(app: FastAPI, service: Service, door: _Door) -> None:
    answers = _Answers(service)
    documented: Any = {200: _EVENTS, **_refusals(400, 401, 413, 415, 422, 429, 503)}

    @app.post("/v1/images/edits", response_model=ImagesReply, responses=documented)
    async def edit_images(
        http: Request, timeout_s: _Timeout = None, idempotency_key: _IdempotencyKey = None
    ) -> Response:
        """Move sliders on photos."""
        with span("edits"):
            caller = await door.caller(http, timeout_s)
            request = await _read(http, EditRequest)
            prepare = partial(service.prepare_edit, request, caller)
            return await answers.answer(prepare, request, caller, idempotency_key)

    @app.post("/v1/images/faces", responses=_refusals(400, 401, 413, 415, 422, 429, 503))
    async def find_faces(http: Request) -> FacesReply:
        """Where the faces of a photo are. Each may be sent back among the `boxes` of an edit."""
        with span("faces"):
            await door.caller(http, None)
            return await service.faces(await _read(http, FacesRequest))

    @app.post("/v1/images/generations", response_model=ImagesReply, responses=documented)
    async def generate_images(
        http: Request, timeout_s: _Timeout = None, idempotency_key: _IdempotencyKey = None
    ) -> Response:
        """Generate pictures from a prompt, with sliders."""
        with span("generations"):
            caller = await door.caller(http, timeout_s)
            _expect_media(http, "application/json")
            request = parse_json(GenerateRequest, await http.body())
            prepare = partial(service.prepare_generation, request, caller)
            return await answers.answer(prepare, request, caller, idempotency_key)

    @app.get("/v1/files/{name}", response_class=Response, responses=_refusals(404, 422))
    async def file(
        name: Annotated[str, Path(pattern=r"^[0-9a-f]{32}\.(png|jpeg|webp|npy)$")],
    ) -> Response:
        """A picture that a request wanted with `response_format: url`."""
        kind: Any = name.rpartition(".")[2]
        return Response(await service.file(name), media_type=MEDIA_TYPES[kind])


def _add_lists(app: FastAPI, service: Service, door: _Door) -> None:
    playground_page = playground.page()
    previews: dict[str, bytes] = {}
    started = int(time.time())

    async def allowed(http: Request) -> dict[str, Listed]:
        key = await door.key(http)
        listed = await service.catalogue.listed()
        return {name: one for name, one in listed.items() if key.allows(name)}

    async def named(http: Request, name: str) -> Listed:
        listed = (await allowed(http)).get(name)
        if listed is None:
            raise Problem(404, "unknown-slider", f"slider: got {name!r}; see /v1/sliders")
        return listed

    @app.get("/v1/sliders", responses=_refusals(401))
    async def sliders(http: Request) -> SliderList:
        """The sliders that requests may name."""
        infos = [_info(listed) for listed in (await allowed(http)).values()]
        words = service.job.words and (await door.key(http)).allows("words")
        limit, finds_faces = service.job.max_strength, service.finds_faces
        return SliderList(data=infos, max_strength=limit, finds_faces=finds_faces, words=words)

    @app.get("/v1/sliders/{name}", responses=_refusals(401, 404, 422))
    async def slider(http: Request, name: _SliderName) -> SliderDetail:
        """One slider with its card: its calibration, and what its training measured."""
        return _detail(await named(http, name))

    @app.get(
        "/v1/sliders/{name}/preview",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}, **_refusals(401, 404, 422, 503)},
    )
    async def preview(http: Request, name: _SliderName) -> Response:
        """Pictures of the slider's own prompt at strengths -1, 0 and 1."""
        listed = await named(http, name)
        if listed.reference not in previews:
            previews[listed.reference] = await _preview(service, listed)
        return Response(previews[listed.reference], media_type="image/png")

    @app.get("/v1/models", responses=_refusals(401))
    async def models(http: Request) -> ModelList:
        """The base behind the sliders."""
        await door.key(http)
        info = ModelInfo(id=service.job.base, created=started, base_id=service.base_id)
        return ModelList(data=[info])

    @app.get("/v1/models/{model:path}", responses=_refusals(401, 404))
    async def model(http: Request, model: str) -> ModelInfo:
        """One base, by its name or id."""
        [only] = (await models(http)).data
        if model not in (only.id, only.base_id):
            raise Problem(404, "unknown-model", f"model: got {model[:80]!r}; see /v1/models")
        return only

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """The playground."""
        return HTMLResponse(playground_page, headers={"content-security-policy": _PAGE_POLICY})


def _add_health(app: FastAPI, backend: Backend, door: _Door) -> None:
    @app.get("/healthz")
    async def healthz() -> Status:
        """Whether this process answers."""
        return Status(status="ok")

    @app.get("/readyz", responses=_refusals(503))
    async def readyz() -> Status:
        """Whether a replica has loaded its base and can compute."""
        try:
            await asyncio.wait_for(backend.ready(), _READY_WITHIN_S)
        except (TimeoutError, Busy) as error:
            raise busy("no replica is ready") from error
        return Status(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, responses=_refusals(401))
    async def metrics(http: Request) -> PlainTextResponse:
        """bs_ray's metrics of the whole cluster, for Prometheus."""
        await door.key(http)
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")


async def _preview(service: Service, listed: Listed) -> bytes:
    wanted = [{listed.reference: strength} for strength in (-1.0, 0.0, 1.0)]
    cards, calibrated = {listed.reference: listed.card}, service.job.editor.calibrated
    try:
        mixes = [Mix.of(strengths, cards, calibrated) for strengths in wanted]
    except SliderError as error:
        raise as_problem(error) or error from error
    task = GenerateTask(
        sliders={listed.reference: listed.place},
        within_s=service.job.deadline_s,
        prompt=listed.card.target,
        mixes=mixes,
        steps=20,
    )
    try:
        result = await service.backend.result(task)
    except Exception as error:
        raise as_problem(error) or error from error
    return strip(result.pictures)


_Kind = TypeVar("_Kind", EditRequest, FacesRequest)


async def _read(http: Request, kind: type[_Kind]) -> _Kind:
    """The request in a body. Raises Problem where it cannot be understood."""
    if _expect_media(http, "multipart/form-data", "application/json") == "application/json":
        return parse_json(kind, await http.body())
    async with http.form(max_files=MAX_IMAGES + 1, max_fields=_FORM_FIELDS) as form:
        fields = [
            (name, await value.read() if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
    return parse_form(kind, fields)


def _expect_media(http: Request, *expected: str) -> str:
    got = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if got not in expected:
        detail = f"body: got {got[:80] or 'no content type'}; expected {' or '.join(expected)}"
        raise Problem(415, "unsupported-media-type", detail)
    return got


def _body_bytes(job: ServeJob) -> int:
    """How large a body may be: its photos share `max_bytes`, and base64 makes 4 bytes of 3."""
    return job.max_bytes * 4 // 3 + _FORM_OVERHEAD_BYTES


# --- descriptions -----------------------------------------------------------------------------
def _info(listed: Listed) -> SliderInfo:
    card = listed.card
    measured = card.calibration
    return SliderInfo(
        **card.model_dump(include={"name", "version", "base", "base_id", "prompts", "rank"}),
        range=measured.units if measured and measured.unit else None,
        unit=measured.judge if measured else None,
        preview=f"/v1/sliders/{card.name}/preview",
    )


def _detail(listed: Listed) -> SliderDetail:
    card = listed.card
    return SliderDetail(
        **dict(_info(listed)),
        **card.model_dump(include={"family", "eta", "calibration"}),
        subject=card.target,
        # The training job is left out: it names buckets and folders that callers need not know.
        training={key: value for key, value in card.training.items() if key != "job"},
    )


_EVENT = {"type": "object", "properties": {"event": {"type": "string"}}}
_EVENTS = {"content": {"text/event-stream": {"schema": _EVENT}}}
_REFUSALS = {
    400: "A body or photo that cannot be read.",
    401: "No key, or not a valid one.",
    404: "Nothing under this name.",
    413: "Too many bytes or pixels.",
    415: "Another content type.",
    422: "Values that are understood but wrong.",
    429: "The key calls too often; Retry-After says when to call again.",
    503: "Busy or starting; Retry-After says when to call again.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the problems that a route may answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}ProblemBody"}}}
    return {s: {"description": _REFUSALS[s], "content": content} for s in statuses}


_SCHEMAS = "#/components/schemas/"
_DESCRIBED = (EditRequest, FacesRequest, GenerateRequest, ProblemBody)
_PHOTO = {"type": "string", "format": "binary"}


def _describe_bodies(app: FastAPI) -> None:
    """Describe the bodies of routes that take JSON or forms, which FastAPI cannot derive."""
    derived = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema and "EditRequest" in app.openapi_schema["components"]["schemas"]:
            return app.openapi_schema
        document = derived()
        kinds: Any = [(k, "validation") for k in _DESCRIBED]
        _, schemas = models_json_schema(kinds, ref_template=_SCHEMAS + "{model}")
        document["components"]["schemas"] |= schemas["$defs"]
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        for path, contents in _bodies(schemas["$defs"]).items():
            body = {"required": True, "content": contents}
            document["paths"][path]["post"]["requestBody"] = body
        app.openapi_schema = document
        return document

    app.openapi = described  # type: ignore[method-assign]


def _bodies(schemas: dict[str, Any]) -> dict[str, dict[str, Any]]:
    def reference(name: str) -> dict[str, Any]:
        return {"schema": {"$ref": f"{_SCHEMAS}{name}"}}

    def form(name: str, image: dict[str, Any]) -> dict[str, Any]:
        fields = schemas[name]["properties"]
        parts = {part: {"type": "string", **_short(field)} for part, field in fields.items()}
        files = {"image": image, "mask": _PHOTO}
        parts |= {part: files[part] for part in files if part in fields}
        shape = {"type": "object", "required": ["image"], "properties": parts}
        return {"schema": {**shape, "additionalProperties": False}}

    photos = {"type": "array", "items": _PHOTO, "minItems": 1, "maxItems": MAX_IMAGES}
    return {
        "/v1/images/edits": {
            "multipart/form-data": form("EditRequest", photos),
            "application/json": reference("EditRequest"),
        },
        "/v1/images/faces": {
            "multipart/form-data": form("FacesRequest", _PHOTO),
            "application/json": reference("FacesRequest"),
        },
        "/v1/images/generations": {"application/json": reference("GenerateRequest")},
    }


def _short(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form's field, whose text is JSON unless it is one of a few words."""
    if "enum" in field:
        return {"enum": field["enum"]}
    return {"description": field.get("description", "JSON, as in the JSON body.")}
