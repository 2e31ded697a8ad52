"""The API in front of a stub, and one real Ray Serve start around the embedded architecture."""

import asyncio
import base64
import hashlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from bs_ray.bench.bank import random_slider
from bs_ray.config import JobError, Prompts, ServeJob, shipped_job
from bs_ray.editing.editor import Edit, Edited, Editor, outputs_of
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound, DiffusionModel
from bs_ray.serve.app import build, check, running
from bs_ray.serve.batcher import Batcher
from bs_ray.serve.ingress import Busy, create_app
from bs_ray.serve.replica import Reply
from bs_ray.sliders.artifact import Card, Slider, SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.tiny.recipe import write_untrained_base

TOLERANCE = 1e-4
"""Of full scale, [0, 1]: pixels in [0, 255] may differ by 255 times this."""


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


# --- the API alone ----------------------------------------------------------------------------
@dataclass
class StubEngine:
    """Adds ten times the summed strengths to every pixel."""

    error: Exception | None = None

    async def edit(self, edit: Edit) -> Reply:
        await self.ready()
        return Reply(Edited(edit.pixels.astype(np.float32) + 10 * sum(edit.mixes[0].values())), 1)

    async def ready(self) -> None:
        if self.error:
            raise self.error


def stub_client(error: Exception | None = None, **settings: object) -> TestClient:
    job = ServeJob.model_validate({"name": "stub", "sliders": ["smile", "age"], **settings})
    prompts = Prompts(target="person", positive="b", negative="c")
    training = {"seconds": 1.5, "job": {"photos": "s3://private"}}
    shared = {"base": "tiny", "base_id": "0", "prompts": prompts, "rank": 4, "training": training}
    cards = [Card(name=name, version=i, **shared) for i, name in enumerate(job.sliders, 1)]
    app = create_app(job, cards, StubEngine(error))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return stub_client()


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_output_formats(client: TestClient, output_format: str) -> None:
    data = photo(0, 40, 60)
    (file,) = files_of(ask(client, data, scales(smile=2), output_format=output_format))
    assert Image.open(io.BytesIO(file)).format == output_format.upper()
    expected = np.clip(pixels_of(data).astype(int) + 20, 0, 255)
    allowed = 0 if output_format == "png" else 8
    assert np.abs(pixels_of(file).astype(int) - expected).mean() <= allowed


def test_transparency_stays(client: TestClient) -> None:
    file = io.BytesIO()
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(file, "PNG")
    (reply,) = files_of(ask(client, file.getvalue(), []))
    assert (np.array(Image.open(io.BytesIO(reply))) == rgba).all()


def test_json_body_means_the_same_as_a_form(client: TestClient) -> None:
    data, more = photo(0), photo(1, form="JPEG")
    encoded = [base64.b64encode(d).decode() for d in (data, more)]
    body = {
        "image": [encoded[0], f"data:image/jpeg;base64,{encoded[1]}"],
        "sliders": scales(smile=1, age=-2),
        "seed": 3,
        "output_format": "npy",
    }
    reply = client.post("/v1/images/edits", json=body)
    form = [("image[]", ("a", data)), ("image[]", ("b", more))]
    fields = {"sliders": json.dumps(body["sliders"]), "seed": "3", "output_format": "npy"}
    assert files_of(reply) == files_of(client.post("/v1/images/edits", files=form, data=fields))
    assert len(files_of(reply)) == 2
    assert reply.json()["meta"]["sliders"] == {"smile@1": 1, "age@2": -2}
    assert files_of(client.post("/v1/images/edits", json={**body, "image": encoded[0]}))


def test_sliders_are_listed(client: TestClient) -> None:
    listed = client.get("/v1/sliders").json()
    assert [s["name"] for s in listed["data"]] == ["smile", "age"]
    expected = {"version": 2, "base": "tiny", "base_id": "0", "rank": 4}
    assert expected.items() <= listed["data"][1].items()
    assert listed["data"][1]["training"] == {"seconds": 1.5}  # and no bucket's name
    assert listed["data"][0]["prompts"]["target"] == "person"


WRONG_FORMS: dict[str, tuple[dict, int, str]] = {
    "no image": ({"image": None}, 422, "image"),
    "not an image": ({"image": b"hello"}, 400, "expected JPEG"),
    "a cut image": ({"image": photo(0)[:90]}, 400, "image:"),
    "unknown slider": ({"sliders": '[{"name":"smlie","scale":1}]'}, 422, "one of smile, age"),
    "NaN": ({"sliders": '[{"name":"smile","scale":NaN}]'}, 422, "got nan"),
    "inf": ({"sliders": '[{"name":"smile","scale":1e999}]'}, 422, "got inf"),
    "too strong": ({"sliders": '[{"name":"smile","scale":-4.5}]'}, 422, "expected -4 to 4"),
    "a boolean": ({"sliders": '[{"name":"smile","scale":true}]'}, 422, "got True"),
    "twice": ({"sliders": json.dumps(scales(age=1) * 2)}, 422, "age more than once"),
    "no JSON": ({"sliders": "smile=1"}, 400, 'such as [{"name"'),
    "deep JSON": ({"sliders": "[" * 100_000}, 400, "sliders: got no JSON"),
    "seed": ({"seed": "1.5"}, 422, "seed: got 1.5"),
    "format": ({"output_format": "webp"}, 422, "output_format: got 'webp'"),
    "response format": ({"response_format": "url"}, 422, "response_format: got 'url'"),
    "a foreign prompt": ({"prompt": "a cat"}, 422, "this server's own, 'person'"),
    "unknown field": ({"strength": "1"}, 422, "strength: got an unknown field; expected image"),
}


@pytest.mark.parametrize("case", WRONG_FORMS)
def test_wrong_forms_get_a_problem(client: TestClient, case: str) -> None:
    fields, status, words = WRONG_FORMS[case]
    form = {"image": photo(0), "sliders": "[]", **fields}
    parts = [(name, (None, v) if isinstance(v, str) else ("p", v)) for name, v in form.items() if v]
    reply = client.post("/v1/images/edits", files=parts, headers={"x-request-id": "r1"})
    assert_problem(reply, status, words)
    assert reply.json()["request_id"] == "r1"


@pytest.mark.parametrize(
    ("content", "media_type", "status", "words"),
    [
        (b"{", "application/json", 400, "body: got no JSON"),
        (b"[]", "application/json", 422, "body: got list"),
        (b'{"image": "%%"}', "application/json", 422, "base64"),
        (b'{"image": "http://x/y.png"}', "application/json", 422, "got a URL"),
        (b'{"image": []}', "application/json", 422, "at least 1"),
        (b"x", "text/plain", 415, "got text/plain; expected multipart/form-data"),
        (b"x", "multipart/form-data", 400, "boundary"),
    ],
)
def test_wrong_bodies_get_a_problem(
    client: TestClient, content: bytes, media_type: str, status: int, words: str
) -> None:
    headers = {"content-type": media_type}
    assert_problem(client.post("/v1/images/edits", content=content, headers=headers), status, words)


def assert_problem(reply: httpx.Response, status: int, words: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert {"type", "title", "status", "detail"} <= set(body) and body["status"] == status
    assert words in body["detail"]
    assert len(reply.content) < 1000  # never echoes what was sent


def test_limits_on_size() -> None:
    small = stub_client(max_bytes=20_000, max_pixels=32 * 32)
    assert_problem(ask(small, photo(0), []), 413, "expected at most 1024 (max_pixels)")
    assert_problem(ask(small, b"x" * 20_001, []), 413, "got 20001 bytes; expected at most 2")
    assert_problem(ask(small, b"x" * 100_000, []), 413, "body: got 100")

    def chunks() -> Iterator[bytes]:  # a body without an announced length
        yield from (b'{"image": "' + b"A" * 30_000 for _ in range(5))

    headers = {"content-type": "application/json"}
    assert_problem(small.post("/v1/images/edits", content=chunks(), headers=headers), 413, "more")


def test_busy_says_when_to_come_back() -> None:
    busy = stub_client(error=Busy())
    for reply in (ask(busy, photo(0), []), busy.get("/readyz")):
        assert_problem(reply, 503, "try again")
        assert int(reply.headers["retry-after"]) >= 1
    assert busy.get("/healthz").status_code == 200


def test_a_failure_tells_nothing_of_the_inside() -> None:
    broken = stub_client(error=RuntimeError("secret path"))
    reply = ask(broken, photo(0), [])
    assert_problem(reply, 500, "its log has the cause")
    assert "secret" not in reply.text


def test_openapi_describes_the_request(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert {"EditRequest", "SliderScale"} <= set(document["components"]["schemas"])
    form, body = (
        content["multipart/form-data"]["schema"],
        document["components"]["schemas"]["EditRequest"],
    )
    assert set(form["properties"]) == set(body["properties"])


# --- batching ---------------------------------------------------------------------------------
def test_rows_that_wait_share_the_next_run() -> None:
    free, sizes = threading.Event(), []

    def run(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        free.wait(10)
        return [row * row for row in rows]

    async def main() -> list[tuple[int, int]]:
        batcher: Batcher[int, int] = Batcher(run, max_rows=4, wait_s=0.0)
        first = asyncio.create_task(batcher.submit(0))
        await until(lambda: sizes == [1])
        rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 7)]
        await asyncio.sleep(0.01)  # the loop runs on while the thread is busy
        rest[0].cancel()
        free.set()
        return [await first, *(await asyncio.gather(*rest[1:]))]

    done = asyncio.run(main())
    assert done == [(0, 1), (4, 3), (9, 3), (16, 3), (25, 2), (36, 2)] and sizes == [1, 3, 2]


def test_a_failing_row_fails_alone() -> None:
    def run(rows: list[int]) -> list[float]:
        return [1 / row for row in rows]

    async def main() -> tuple[list, int]:
        batcher: Batcher[int, float] = Batcher(run, max_rows=8, wait_s=0.05)
        results = await asyncio.gather(
            *(batcher.submit(i) for i in (1, 2, 0)), return_exceptions=True
        )
        return results, batcher.failures_in_a_row

    (one, half, failed), failures = asyncio.run(main())
    assert (one, half) == ((1.0, 1), (0.5, 1)) and isinstance(failed, ZeroDivisionError)
    assert failures == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# --- before anything starts -------------------------------------------------------------------
@dataclass(frozen=True)
class World:
    """A base with random weights, and a registry with sliders for it."""

    job: ServeJob
    editor: Editor
    foreign: Slider


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("serve")
    write_untrained_base(folder / "base")
    model = load_base(str(folder / "base"))
    registry = Registry(str(folder / "sliders"))
    sliders = [registry.publish(slider_for(model, n, i)) for i, n in enumerate(["smile", "age"])]
    card = sliders[0].card.model_copy(update={"name": "foreign", "base_id": "elsewhere"})
    foreign = registry.publish(Slider(card, sliders[0].factors))
    job = shipped_job(
        "tiny/serve.yaml",
        [
            f"base={folder / 'base'}",
            f"registry={folder / 'sliders'}",
            f"port={free_port()}",
            "batch_wait_ms=100",
            "editor.steps=4",
            "autoscaling.max_replicas=1",
        ],
    )
    assert isinstance(job, ServeJob)
    return World(job, Editor(model, sliders, job.editor), foreign)


def slider_for(model: DiffusionModel, name: str, seed: int) -> Slider:
    """Random, and strong enough that a mixed-up strength shows."""
    slider = random_slider(model, name, seed)
    return Slider(slider.card, {layer: (a, 20 * b) for layer, (a, b) in slider.factors.items()})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sliders": ["smile", "beard"]}, SliderError, "expected one of age, foreign, smile"),
        ({"sliders": ["smile@7"]}, SliderError, "expected a version of smile among"),
        ({"sliders": ["smile", "foreign"]}, SliderError, "slider foreign@1: got base"),
        ({"sliders": ["smile", "smile@1"]}, JobError, "smile more than once"),
        ({"base": "no/such/base"}, BaseNotFound, "no/such/base"),
    ],
)
def test_refused_before_start(world: World, change: dict, error: type, words: str) -> None:
    with (
        pytest.raises(error, match=words),
        running(world.job.model_copy(update=change)),
    ):
        pytest.fail("started")


def test_a_taken_port_is_refused(world: World) -> None:
    with (
        socket.create_server(("127.0.0.1", world.job.port)),
        pytest.raises(JobError, match=f"got 127.0.0.1:{world.job.port}.*add port="),
    ):
        check(world.job)


def test_build_takes_what_a_ray_service_gives(world: World, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps(world.job.model_dump()))
    assert build({"job": str(path)}) is not None
    with pytest.raises(JobError, match=r"got \['jobs'\]; expected job"):
        build({"jobs": str(path)})


# --- the real thing ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(ray_cluster: None, world: World) -> Iterator[httpx.Client]:
    with running(world.job) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_together_equals_one_by_one_equals_the_editor(served: httpx.Client, world: World) -> None:
    sizes = [(64, 64), (64, 64), (64, 64), (64, 64), (64, 64), (64, 64), (90, 60), (48, 48)]
    photos = [photo(i, *size) for i, size in enumerate(sizes)]
    mixes = [{"smile": s, "age": -s / 2} for s in np.linspace(-2, 2, 8).tolist()]

    def call(i: int) -> httpx.Response:
        return ask(served, photos[i], scales(**mixes[i]), seed=i, output_format="npy")

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, range(8)))
    alone = [call(i) for i in range(8)]
    assert max(reply.json()["meta"]["batch_rows"] for reply in together) > 1
    assert all(reply.json()["meta"]["batch_rows"] == 1 for reply in alone)
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        assert far(edited_pixels(a), edited_pixels(b)) <= TOLERANCE
        assert (
            far(edited_pixels(b), edit_directly(world.editor, i, photos[i], mixes[i])) <= TOLERANCE
        )
        assert far(edited_pixels(b), pixels_of(photos[i])) > 100 * TOLERANCE


def edit_directly(editor: Editor, seed: int, data: bytes, mix: dict[str, float]) -> np.ndarray:
    edit = Edit(hashlib.sha256(data).hexdigest(), pixels_of(data), [mix], seed)
    return outputs_of(editor.edit([edit])[0])[0].pixels


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of full scale."""
    return float(np.abs(a.astype(np.float32) - b).max()) / 255


@pytest.mark.parametrize("sliders", [[], scales(smile=0, age=0)])
def test_zero_returns_the_photo(served: httpx.Client, sliders: list[dict]) -> None:
    data = photo(5, 70, 50)
    assert (edited_pixels(ask(served, data, sliders, output_format="npy")) == pixels_of(data)).all()
    assert (pixels_of(files_of(ask(served, data, sliders))[0]) == pixels_of(data)).all()


def test_it_answers_over_http(served: httpx.Client) -> None:
    assert served.get("/healthz").status_code == served.get("/readyz").status_code == 200
    listed = served.get("/v1/sliders").json()["data"]
    assert [(s["name"], s["version"]) for s in listed] == [("smile", 1), ("age", 1)]
    reply = served.get("/v1/nothing", headers={"x-request-id": "r2"})
    assert_problem(reply, 404, "Not Found")
    assert reply.headers.get_list("x-request-id") == ["r2"] and reply.json()["request_id"] == "r2"


def test_a_second_serve_is_refused(served: httpx.Client, world: World) -> None:
    other = world.job.model_copy(update={"port": free_port()})
    with pytest.raises(JobError, match="serves tiny already"), running(other):
        pytest.fail("started")
    assert served.get("/readyz").status_code == 200
