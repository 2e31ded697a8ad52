"""Photos, requests and stand-ins that the tests of the API share."""

import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from bs_ray.config import Prompts, ServeJob
from bs_ray.editing.locate import Sight
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.serve.engine.tasks import (
    EditTask,
    Event,
    GenerateTask,
    Partial,
    Result,
    Step,
    Task,
)
from bs_ray.serve.http.catalogue import Catalogue, Listed
from bs_ray.serve.http.ingress import create_app
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import Card
from bs_ray.sliders.registry import Registry


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def photo(seed: int, height: int = 64, width: int = 64, form: str = "PNG") -> bytes:
    """A photo file of soft blobs (noise, enlarged)."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(file, form)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def scales(**sliders: float) -> list[dict]:
    return [{"name": name, "scale": scale} for name, scale in sliders.items()]


def ask(
    client: httpx.Client, image: bytes, sliders: list[dict], **fields: object
) -> httpx.Response:
    form = {"sliders": json.dumps(sliders), **{name: str(v) for name, v in fields.items()}}
    return client.post("/v1/images/edits", files={"image": ("p", image)}, data=form)


def files_of(reply: httpx.Response) -> list[bytes]:
    assert reply.status_code == 200, reply.text
    return [base64.b64decode(item["b64_json"]) for item in reply.json()["data"]]


def edited_pixels(reply: httpx.Response) -> np.ndarray:
    return np.load(io.BytesIO(files_of(reply)[0]))


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of full scale."""
    return float(np.abs(a.astype(np.float32) - b).max()) / 255


def assert_problem(reply: httpx.Response, status: int, words: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert {"type", "title", "status", "detail", "request_id"} <= set(body)
    assert body["status"] == status and words in body["detail"], body
    assert len(reply.content) < 2500  # never echoes what was sent


class Answers:
    """A backend that answers in events: the last one is the result."""

    def events(self, task: Task) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def result(self, task: Task) -> Result:
        async for event in self.events(task):
            if isinstance(event, Result):
                return event
        raise AssertionError


@dataclass
class StubBackend(Answers):
    """Adds ten times the summed strengths to every pixel; generates grey pictures alike."""

    error: Exception | None = None
    tasks: list[Task] = field(default_factory=list)

    async def events(self, task: Task) -> AsyncIterator[Event]:
        await self.ready()
        self.tasks.append(task)
        for step in (1, 2):
            yield Step(step, 3)
        for index in range(task.partials):
            yield Partial(index, **self._made(task))
        yield Result(**self._made(task), compute_s=0.1)

    async def sight(self) -> Sight:
        return Sight(64, 8, None)

    async def ready(self) -> None:
        if self.error:
            raise self.error

    async def metrics(self) -> str:
        return "# HELP ray_bs_ray_nothing Nothing.\n"

    def _made(self, task: Task) -> dict[str, list]:
        if isinstance(task, EditTask):
            mixes = task.edits[0].mixes
            by = [np.float32(10 * sum(mix.strengths.values())) for mix in mixes]
            return {
                "changes": [[np.full_like(e.pixels, b, np.float32) for e in task.edits] for b in by]
            }
        assert isinstance(task, GenerateTask)
        grey = [128 + 10 * sum(mix.strengths.values()) for mix in task.mixes]
        kind = np.float32 if task.floats else np.uint8
        return {"pictures": [np.full((64, 64, 3), level, kind) for level in grey]}


class SilentMetrics:
    """In place of IngressMetrics, where there is no Ray."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []
        self.limited: list[str] = []

    def answered(self, operation: str, status: int, seconds: float) -> None:
        self.answers.append((operation, status))

    def rate_limited(self, key: str) -> None:
        self.limited.append(key)


CALIBRATION = Calibration(
    judge="stub",
    strengths=[-4.0, -2.0, 0.0, 2.0, 4.0],
    effect=[-4.0, -2.0, 0.0, 2.0, 4.0],
    drift=[1.0, 0.5, 0.0, 0.5, 1.0],
    unit=1.0,
    low=-2.0,
    high=2.0,
)


def stub_app(backend: StubBackend | None = None, metrics: object = None, **settings) -> FastAPI:
    """The API of two sliders, smile@1 and age@2, in front of a stub."""
    known = {"name": "stub", "sliders": ["smile", "age"], "registry": "/no/such/registry"}
    job = ServeJob.model_validate(known | {"editor": {"prompt": "person"}} | settings)
    prompts = Prompts(target="person", positive="b", negative="c")
    training = {"seconds": 1.5, "job": {"photos": "s3://private"}}
    shared = {"base": "tiny", "base_id": "0", "prompts": prompts, "rank": 4, "training": training}
    cards = [
        Card(name="smile", version=1, **shared),
        Card(name="age", version=2, calibration=CALIBRATION, **shared),
    ]
    listed = {card.name: Listed(card, f"{card.name}@{card.version}") for card in cards}
    base = BaseIdentity("0", "sdxl")
    catalogue = Catalogue(Registry(job.registry), job.sliders, base, 1e9, listed=listed)
    return create_app(
        job,
        "0",
        catalogue,
        backend or StubBackend(),
        metrics or SilentMetrics(),  # type: ignore[arg-type]
    )


def stub_client(backend: StubBackend | None = None, **settings) -> TestClient:
    return TestClient(stub_app(backend, **settings), raise_server_exceptions=False)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app behind a real HTTP server on loopback; its URL."""
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
