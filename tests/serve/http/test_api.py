"""What the API takes, gives and refuses, in front of a stub that brightens."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import yaml
from fastapi.testclient import TestClient
from PIL import Image

from bs_ray.images.encode import read_provenance
from bs_ray.serve.engine.tasks import Busy, EditTask, Event, Result, Step, Task
from bs_ray.serve.http.keys import new_key
from bs_ray.storage import UnreachableError
from tests.images.poison import mutated, sound_photos
from tests.serve.api import (
    SilentMetrics,
    StubBackend,
    ask,
    assert_problem,
    files_of,
    listening,
    photo,
    pixels_of,
    scales,
    stub_app,
    stub_client,
)

EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return stub_client()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- pictures ---------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_output_formats(client: TestClient, form: str) -> None:
    data = photo(0, 40, 60)
    (file,) = files_of(ask(client, data, scales(smile=2), output_format=form))
    assert Image.open(io.BytesIO(file)).format == form.upper()
    expected = np.clip(pixels_of(data).astype(int) + 20, 0, 255)
    assert np.abs(pixels_of(file).astype(int) - expected).mean() <= (0 if form == "png" else 8)
    made = read_provenance(file)
    assert made and made["sliders"] == {"smile@1": 2} and made["seed"] == 0
    low, high = (
        len(files_of(ask(client, data, [], output_format=form, output_compression=q))[0])
        for q in (5, 100)
    )
    assert (low < high) == (form != "png")


def test_transparency_stays(client: TestClient) -> None:
    file = io.BytesIO()
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(file, "PNG")
    (reply,) = files_of(ask(client, file.getvalue(), []))
    assert (np.array(Image.open(io.BytesIO(reply))) == rgba).all()


def test_what_the_output_cannot_hold_is_said(client: TestClient) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(file, "PNG", dpi=(9, 9))
    for form, notes in {"png": [], "webp": ["16 bits became 8", "dpi dropped"]}.items():
        reply = ask(client, file.getvalue(), scales(smile=1), output_format=form)
        assert reply.json()["meta"]["notes"] == notes


class Notes(StubBackend):
    async def events(self, task: Task) -> AsyncIterator[Event]:
        async for event in super().events(task):
            if isinstance(event, Result):
                event = replace(event, notes=["too long"])
            yield event


def test_what_the_engine_says_is_in_the_notes() -> None:
    client = stub_client(Notes())
    reply = client.post("/v1/images/generations", json={"prompt": "a man", "n": 2})
    assert reply.json()["meta"]["notes"] == ["too long"]


def test_json_bodies_mean_the_same_as_a_form(client: TestClient) -> None:
    data, more = photo(0), photo(1, form="JPEG")
    body = {
        "image": [b64(data), f"data:image/jpeg;base64,{b64(more)}"],
        "sliders": scales(smile=1, age=-2),
        "seed": 3,
        "output_format": "npy",
    }
    reply = client.post(EDITS, json=body)
    form = [("image[]", ("a", data)), ("image[]", ("b", more))]
    fields = {"sliders": json.dumps(body["sliders"]), "seed": "3", "output_format": "npy"}
    assert files_of(reply) == files_of(client.post(EDITS, files=form, data=fields))
    assert len(files_of(reply)) == 2
    assert reply.json()["meta"]["sliders"] == {"smile@1": 1, "age@2": -2}
    newer = {k: v for k, v in body.items() if k != "image"}
    newer["images"] = [{"image_url": f"data:image/png;base64,{b64(d)}"} for d in (data, more)]
    assert files_of(client.post(EDITS, json=newer)) == files_of(reply)
    assert files_of(client.post(EDITS, json={**body, "image": b64(data)}))


def test_a_sweep_gives_a_picture_for_each_scale(client: TestClient) -> None:
    fields = {"sweep": '{"name": "age", "scales": [-1, 0, 1]}', "output_format": "npy", "n": 2}
    reply = ask(client, photo(0), scales(smile=1), **fields)
    first = [np.load(io.BytesIO(file)) for file in files_of(reply)]
    for picture, scale in zip(first, [-1, 0, 1] * 2, strict=True):
        assert np.allclose(picture, np.clip(pixels_of(photo(0)) + 10.0 * (1 + scale), 0, 255))
    assert reply.json()["meta"]["sweep"] == [-1, 0, 1]


def test_a_mask_says_where(client: TestClient) -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, 20:, 3] = 255
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    parts = {"image": ("p", photo(0)), "mask": ("m", file.getvalue())}
    fields = {"sliders": json.dumps(scales(smile=3))}
    (edited,) = files_of(client.post(EDITS, files=parts, data=fields))
    changed = (pixels_of(edited) != pixels_of(photo(0))).any(-1)
    assert changed[:, :20].mean() > 0.8 and not changed[:, 20:].any()
    parts["mask"] = ("m", photo(0))
    assert_problem(client.post(EDITS, files=parts, data=fields), 400, "without transparency")
    Image.fromarray(rgba[:9]).save(file := io.BytesIO(), "PNG")
    parts["mask"] = ("m", file.getvalue())
    assert_problem(client.post(EDITS, files=parts, data=fields), 400, "expected the photo's 64 x")


def test_settings_reach_the_editor() -> None:
    backend = StubBackend()
    client = stub_client(backend, deadline_s=20)
    ask(client, photo(0), scales(age=1), seed=4, n=2)
    ask(client, photo(0), [], quality="medium", steps=5, method="sdedit", strength=0.5)
    ask(client, photo(0), [], quality="high")
    assert_problem(ask(client, photo(0), [], quality="balanced"), 422, "quality: ")
    plain, again, changed, high = backend.tasks
    assert isinstance(plain, EditTask) and isinstance(again, EditTask)
    assert isinstance(changed, EditTask) and isinstance(high, EditTask)
    [first], [second], [found], [best] = (task.edits for task in backend.tasks)
    assert [mix.strengths for mix in first.mixes] == [{"age@2": 1}]
    assert plain.sliders == {"age@2": "age@2"} and [first.seed, second.seed] == [4, 5]
    assert 19 < plain.within_s <= 20
    assert first.settings and found.settings and best.settings
    assert (first.settings.steps, first.settings.region) == (10, "photo")
    found = found.settings
    assert (found.method, found.steps, found.start, found.prompt) == ("sdedit", 5, 0.5, "person")
    assert found.soft_mask == 0.5  # what `medium` adds to `low`
    assert (best.settings.steps, best.settings.soft_mask) == (28, 0.5)


def test_a_caller_may_wait_less_but_not_longer() -> None:
    backend = StubBackend()
    client = stub_client(backend, deadline_s=20)
    for asked, given in ((5, 5), (50, 20)):
        client.post(
            EDITS, files={"image": photo(0)}, headers={"x-request-timeout": str(asked)}
        ).raise_for_status()
        assert given - 1 < backend.tasks.pop().within_s <= given


def test_drawing(client: TestClient) -> None:
    body = {"prompt": "a woman", "sliders": scales(smile=2), "n": 2, "output_format": "npy"}
    reply = client.post("/v1/images/generations", json=body)
    assert [float(np.load(io.BytesIO(f)).mean()) for f in files_of(reply)] == [148.0, 148.0]
    assert_problem(client.post("/v1/images/generations", json={}), 422, "prompt: got nothing")


def test_pictures_as_urls(tmp_path: Path) -> None:
    client = stub_client(outputs=str(tmp_path / "out"))
    reply = ask(client, photo(0), scales(smile=1), response_format="url")
    url = reply.json()["data"][0]["url"]
    got = client.get(url.removeprefix("http://testserver"))
    assert got.headers["content-type"] == "image/png"
    expected = np.clip(pixels_of(photo(0)).astype(int) + 10, 0, 255)
    assert (pixels_of(got.content) == expected).all()
    assert_problem(client.get(f"/v1/files/{'0' * 32}.png"), 404, "no longer")
    assert client.get("/v1/files/..%2f..%2fetc%2fpasswd").status_code in (404, 422)


# --- lists ------------------------------------------------------------------------------------
def test_sliders_and_models_are_listed(client: TestClient) -> None:
    listed = client.get("/v1/sliders").json()
    smile, age = listed["data"]
    assert (smile["name"], smile["range"], age["range"]) == ("smile", None, [-2, 2])
    expected = {"version": 2, "base": "tiny", "base_id": "0", "rank": 4, "unit": "stub"}
    assert expected.items() <= age.items()
    assert "training" not in age and smile["prompts"]["target"] == "person"
    strip = client.get(smile["preview"])
    assert Image.open(io.BytesIO(strip.content)).size == (3 * 64, 64)
    assert_problem(client.get("/v1/sliders/beard/preview"), 404, "beard")
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["object"] == "model"
    assert client.get("/v1/models/tiny").json() == model == client.get("/v1/models/0").json()
    assert_problem(client.get("/v1/models/a/b"), 404, "got 'a/b'; see /v1/models")


def test_one_slider_has_its_whole_card(client: TestClient) -> None:
    age = client.get("/v1/sliders/age").json()
    assert client.get("/v1/sliders").json()["data"][1].items() <= age.items()
    assert age["training"] == {"seconds": 1.5}  # and no bucket's name
    assert age["calibration"]["judge"] == "stub" and age["calibration"]["effect"]
    assert client.get("/v1/sliders/smile").json()["calibration"] is None
    assert_problem(client.get("/v1/sliders/beard"), 404, "got 'beard'; see /v1/sliders")
    assert_problem(client.get("/v1/sliders/BEARD"), 422, "name")


def test_the_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "<html" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert len(page.headers["x-request-id"]) == 32


# --- refusals ---------------------------------------------------------------------------------
MANY = json.dumps([{"name": f"s{i}", "scale": 1} for i in range(1_000_000)])
MANY_SCALES = json.dumps({"name": "age", "scales": [1] * 1_000_000})
WRONG_FORMS: dict[str, tuple[dict, int, str]] = {
    "no image": ({"image": None}, 422, "image"),
    "not an image": ({"image": b"hello"}, 400, "expected one of JPEG"),
    "a cut image": ({"image": photo(0)[:90]}, 400, "image:"),
    "unknown slider": ({"sliders": '[{"name":"smlie","scale":1}]'}, 422, "one of smile, age"),
    "a path": ({"sliders": '[{"name":"../../etc/passwd","scale":1}]'}, 422, "expected 1-64 of"),
    "a path as version": ({"sliders": '[{"name":"smile@../x","scale":1}]'}, 422, "smile@2"),
    "no such version": ({"sliders": '[{"name":"smile@7","scale":1}]'}, 422, "got 'smile@7'"),
    "NaN": ({"sliders": '[{"name":"smile","scale":NaN}]'}, 422, "got nan"),
    "inf": ({"sliders": '[{"name":"smile","scale":1e999}]'}, 422, "got inf"),
    "too strong": ({"sliders": '[{"name":"smile","scale":-4.5}]'}, 422, "expected -4 to 4"),
    "a boolean": ({"sliders": '[{"name":"smile","scale":true}]'}, 422, "got True"),
    "twice": ({"sliders": json.dumps(scales(age=1) * 2)}, 422, "age more than once"),
    "two versions": (
        {"sliders": '[{"name":"age","scale":1},{"name":"age@2","scale":1}]'},
        422,
        "more than once",
    ),
    "no JSON": ({"sliders": "smile=1"}, 400, 'such as [{"name"'),
    "deep JSON": ({"sliders": "[" * 100_000}, 400, "sliders: got no JSON"),
    "a million": ({"sliders": MANY}, 413, "body"),
    "a million scales": ({"sweep": MANY_SCALES}, 400, "Part exceeded"),
    "swept twice": (
        {"sliders": '[{"name":"age","scale":1}]', "sweep": '{"name":"age","scales":[1]}'},
        422,
        "which `sliders` has as well",
    ),
    "seed": ({"seed": "1.5"}, 422, "seed: got 1.5"),
    "a huge seed": ({"seed": "1" + "0" * 400}, 422, "seed"),
    "format": ({"output_format": "gif"}, 422, "output_format: got 'gif'"),
    "no store for URLs": ({"response_format": "url"}, 422, "keeps no pictures"),
    "size": ({"size": "512x512"}, 422, "expected auto or"),
    "another base": ({"model": "dall-e-2"}, 422, "expected none, or 'tiny'"),
    "a foreign prompt": ({"prompt": "a cat"}, 422, "this server's own, 'person'"),
    "null-text": ({"method": "null_text"}, 422, "method"),
    "too many pictures": (
        {"sweep": '{"name":"age","scales":[0,0,0,0,0,0,0,0]}', "n": "10"},
        422,
        "= 80 pictures",
    ),
    "unknown field": ({"strenght": "1"}, 422, "strenght: got an unknown field; expected model"),
}


@pytest.mark.parametrize("case", WRONG_FORMS)
def test_wrong_forms_get_a_problem(client: TestClient, case: str) -> None:
    fields, status, words = WRONG_FORMS[case]
    form = {"image": photo(0), "sliders": "[]", **fields}
    parts = [(name, (None, v) if isinstance(v, str) else ("p", v)) for name, v in form.items() if v]
    reply = client.post(EDITS, files=parts, headers={"x-request-id": "r1"})
    assert_problem(reply, status, words)
    assert reply.json()["request_id"] == "r1"
    assert reply.elapsed.total_seconds() < 1


@pytest.mark.parametrize(
    ("content", "media_type", "status", "words"),
    [
        (b"{", "application/json", 400, "body: got no JSON"),
        (b"[]", "application/json", 422, "body: got list"),
        (b'{"image": "%%"}', "application/json", 422, "base64"),
        (b'{"image": "http://10.0.0.1/y.png"}', "application/json", 422, "fetches none"),
        (b'{"image": "file:///etc/passwd"}', "application/json", 422, "base64"),
        (b'{"image": []}', "application/json", 422, "at least 1"),
        (b'{"image": ["' + b"A" * 10**7 + b'"]}', "application/json", 400, "expected one of JPEG"),
        (b"x", "text/plain", 415, "got text/plain; expected multipart/form-data"),
        (b"x", "multipart/form-data", 400, "boundary"),
    ],
)
def test_wrong_bodies_get_a_problem(
    client: TestClient, content: bytes, media_type: str, status: int, words: str
) -> None:
    headers = {"content-type": media_type}
    assert_problem(client.post(EDITS, content=content, headers=headers), status, words)


def test_hostile_photos_get_an_answer_within_a_second(client: TestClient) -> None:
    statuses = set()
    for key, data in mutated(sound_photos(), 120, seed=6):
        reply = ask(client, data, scales(smile=1))
        statuses.add(reply.status_code)
        assert reply.status_code in (200, 400, 413), (key, reply.text)
        assert reply.elapsed.total_seconds() < 1, key
    assert statuses >= {200, 400}


def test_limits_on_size() -> None:
    small = stub_client(max_bytes=20_000, max_pixels=32 * 32)
    assert_problem(ask(small, photo(0), []), 413, "expected at most 1024 (max_pixels)")
    assert_problem(ask(small, b"x" * 20_001, []), 413, "got 20001 bytes; expected at most 2")
    assert_problem(ask(small, b"x" * 100_000, []), 413, "body: got 100")

    def chunks() -> Iterator[bytes]:  # a body without an announced length
        yield from (b'{"image": "' + b"A" * 30_000 for _ in range(5))

    headers = {"content-type": "application/json"}
    assert_problem(small.post(EDITS, content=chunks(), headers=headers), 413, "more")


def test_busy_says_when_to_come_back() -> None:
    busy = stub_client(StubBackend(Busy("it would be late", 2.5)))
    for reply in (
        ask(busy, photo(0), []),
        ask(busy, photo(0), [], stream="true"),
        busy.get("/readyz"),
        busy.get("/v1/sliders/smile/preview"),
    ):
        assert_problem(reply, 503, "try again")
        assert int(reply.headers["retry-after"]) >= 1
    assert int(ask(busy, photo(0), []).headers["retry-after"]) == 3
    assert busy.get("/healthz").status_code == 200


def test_a_store_that_is_down_is_worth_another_try() -> None:
    down = stub_client(StubBackend(UnreachableError("s3://private: no answer")))
    reply = ask(down, photo(0), scales(smile=1))
    assert_problem(reply, 503, "cannot be fetched right now")
    assert reply.headers["retry-after"] == "6" and "private" not in reply.text


def test_a_failure_tells_nothing_of_the_inside() -> None:
    broken = stub_client(StubBackend(RuntimeError("secret path")))
    reply = ask(broken, photo(0), [])
    assert_problem(reply, 500, "its log has the cause")
    assert "secret" not in reply.text


# --- keys -------------------------------------------------------------------------------------
def test_keys_limit_who_may_ask_for_what(tmp_path: Path) -> None:
    secret, entry = new_key("team", sliders=["smi*"], requests_per_minute=60, burst=2)
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
    metrics = SilentMetrics()
    app = stub_app(metrics=metrics, keys=str(tmp_path / "keys.yaml"))
    client = TestClient(app, raise_server_exceptions=False)
    for header in ({}, {"authorization": "Bearer nonsense"}, {"authorization": secret}):
        reply = client.get("/v1/sliders", headers=header)
        assert_problem(reply, 401, "key")
        assert "bearer" in reply.headers["www-authenticate"].lower() and secret not in reply.text
    assert_problem(ask(client, photo(0), []), 401, "key")
    assert client.get("/").status_code == client.get("/healthz").status_code == 200
    client.headers["authorization"] = f"Bearer {secret}"
    assert [s["name"] for s in client.get("/v1/sliders").json()["data"]] == ["smile"]
    assert client.get("/v1/sliders/smile").status_code == 200
    assert_problem(client.get("/v1/sliders/age"), 404, "got 'age'")
    assert_problem(ask(client, photo(0), scales(age=1)), 422, "expected one of smile")
    assert ask(client, photo(0), scales(smile=1)).status_code == 200
    limited = ask(client, photo(0), scales(smile=1))
    assert_problem(limited, 429, "")
    assert int(limited.headers["retry-after"]) >= 1
    assert metrics.limited == ["team"]
    assert [status for _, status in metrics.answers] == [401, 422, 200, 429]


def test_cors_is_off_unless_an_origin_is_named() -> None:
    asking = {"origin": "https://a.example"}
    assert (
        "access-control-allow-origin" not in stub_client().get("/healthz", headers=asking).headers
    )
    named = stub_client(cors_origins=["https://a.example"])
    allowed = named.get("/healthz", headers=asking).headers["access-control-allow-origin"]
    assert allowed == "https://a.example"
    other = named.get("/healthz", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


# --- repeats ----------------------------------------------------------------------------------
def test_an_idempotency_key_gives_the_same_reply_once_computed() -> None:
    backend = StubBackend()
    client = stub_client(backend)
    client.headers["idempotency-key"] = "abc"
    first, again = (ask(client, photo(0), scales(smile=1)) for _ in range(2))
    assert first.json() == again.json() and len(backend.tasks) == 1
    assert again.headers["idempotent-replayed"] == "true"
    assert_problem(ask(client, photo(0), scales(smile=2)), 422, "dempotency")


# --- events -----------------------------------------------------------------------------------
def test_a_stream_has_progress_partial_pictures_and_the_result(client: TestClient) -> None:
    fields = {"stream": "true", "partial_images": 2, "output_format": "npy"}
    reply = ask(client, photo(0), scales(smile=1), **fields)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, last, end = reply.text.strip().split("\n\n")
    assert end == "data: [DONE]"
    names = [event.split("\n")[0].removeprefix("event: ") for event in [*events, last]]
    assert names == [
        *["image_edit.progress"] * 2,
        *["image_edit.partial_image"] * 2,
        "image_edit.completed",
    ]
    data = [json.loads(event.split("\n")[1].removeprefix("data: ")) for event in [*events, last]]
    assert [d["step"] for d in data[:2]] == [1, 2]
    assert Image.open(io.BytesIO(base64.b64decode(data[2]["b64_json"]))).size == (64, 64)
    whole = ask(client, photo(0), scales(smile=1), output_format="npy")
    assert data[-1]["b64_json"] == whole.json()["data"][0]["b64_json"]
    assert data[-1]["meta"]["sliders"] == {"smile@1": 1}


# --- OpenAI's own client ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def official() -> Iterator[openai.OpenAI]:
    with listening(stub_app()) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_edits(official: openai.OpenAI) -> None:
    reply = official.images.edit(
        image=("a.png", photo(0)),
        prompt="",
        response_format="b64_json",
        extra_body={"sliders": scales(smile=1, age=0.5), "seed": 5},
    )
    assert reply.data and reply.data[0].b64_json
    expected = np.clip(pixels_of(photo(0)).astype(int) + 15, 0, 255)
    assert (pixels_of(base64.b64decode(reply.data[0].b64_json)) == expected).all()
    assert reply.meta["sliders"] == {"smile@1": 1, "age@2": 0.5} and reply.meta["seed"] == 5
    swept = official.images.edit(
        image=[("a.png", photo(0)), ("b.png", photo(1))],
        prompt="",
        extra_body={"sweep": {"name": "smile", "scales": [-1, 0, 1]}},
    )
    assert swept.data and len(swept.data) == 6


def test_openai_streams(official: openai.OpenAI) -> None:
    stream = official.images.edit(
        image=("a.png", photo(0)),
        prompt="",
        stream=True,
        partial_images=2,
        extra_body={"sliders": scales(smile=1)},
    )
    kinds = [event.type for event in stream]
    assert kinds.count("image_edit.partial_image") == 2 and kinds[-1] == "image_edit.completed"


def test_openai_generates_and_lists(official: openai.OpenAI) -> None:
    drawn = official.images.generate(prompt="a man", n=2, extra_body={"sliders": scales(smile=1)})
    assert drawn.data and len(drawn.data) == 2
    assert [model.id for model in official.models.list()] == ["tiny"]


def test_openai_reads_our_errors(official: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        official.images.edit(
            image=photo(0), prompt="", extra_body={"sliders": [{"name": "beard", "scale": 1}]}
        )
    assert "one of smile, age" in str(refused.value.response.json()["detail"])
    told = refused.value
    assert (told.code, told.param, told.type) == (
        "unknown-slider",
        "slider",
        "invalid_request_error",
    )
    assert "one of smile, age" in told.body["message"]  # type: ignore[index]


class FailsOnTheWay(StubBackend):
    async def events(self, task: Task) -> AsyncIterator[Event]:
        yield Step(1, 3)
        raise ZeroDivisionError


def test_openai_reads_errors_of_a_stream() -> None:
    with listening(stub_app(FailsOnTheWay())) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.images.edit(
            image=photo(0), prompt="", stream=True, extra_body={"sliders": scales(smile=1)}
        )
        with pytest.raises(openai.APIError, match="the request failed on the server"):
            list(stream)


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: f"data:image/png;base64,{text}",
    ],
)
def test_base64_as_people_write_it(client: TestClient, changed: Callable[[str], str]) -> None:
    body = {"image": changed(base64.b64encode(photo(0)).decode()), "quality": "standard"}
    height, width = pixels_of(photo(0)).shape[:2]
    body["size"] = f"{width}x{height}"
    assert client.post(EDITS, json=body).status_code == 200
    assert_problem(client.post(EDITS, json={**body, "size": "8x9"}), 422, "size: got '8x9'")


def test_openapi_describes_what_is_taken_and_given(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"][EDITS]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    schemas = document["components"]["schemas"]
    assert {"EditRequest", "GenerateRequest", "SliderScale", "ProblemBody"} <= set(schemas)
    form = content["multipart/form-data"]["schema"]["properties"]
    assert set(form) == set(schemas["EditRequest"]["properties"])
    statuses = set(document["paths"][EDITS]["post"]["responses"])
    assert statuses == {"200", "400", "401", "413", "415", "422", "429", "503"}


# --- words ------------------------------------------------------------------------------------
SMILING = {"positive": "person, smiling", "negative": "person, frowning", "scale": 1.5}


def test_words_are_a_slider_where_the_server_takes_them(client: TestClient) -> None:
    backend = StubBackend()
    taking = stub_client(backend, words=True)
    reply = ask(taking, photo(0), [*scales(smile=2), SMILING])
    [reference] = [name for name in reply.json()["meta"]["sliders"] if name != "smile@1"]
    assert reference.startswith("smiling@w")
    made = read_provenance(files_of(reply)[0])
    assert made and made["sliders"] == {"smile@1": 2, reference: 1.5}
    assert made["words"][reference]["positive"] == "person, smiling"
    assert made["words"][reference]["target"] == "person"  # the server's prompt
    [task] = backend.tasks
    assert isinstance(task, EditTask) and list(task.sliders) == ["smile@1"]
    assert list(task.words) == [reference] and (task.rows, task.weight) == (1, 3)
    assert taking.get("/v1/sliders").json()["words"] is True

    other = ask(taking, photo(0), [SMILING | {"target": "a cat"}], quality="fast")
    assert other.status_code == 200
    settings = backend.tasks[-1].edits[0].settings  # type: ignore[union-attr]
    assert settings and settings.prompt == "a cat"

    assert_problem(ask(client, photo(0), [SMILING]), 422, "expected a name: no words here")
    assert client.get("/v1/sliders").json()["words"] is False


@pytest.mark.parametrize(
    ("sliders", "message"),
    [
        ([SMILING, SMILING], "more than once"),
        ([SMILING | {"name": "smile"}], "got name and words"),
        ([{"positive": "a", "scale": 1}], "neither a name nor two prompts"),
        ([{"positive": "a", "negative": "a", "scale": 1}], "expected two that differ"),
        ([SMILING | {"target": "b"}, {"positive": "c", "negative": "d", "target": "e", "scale": 1}],
         "several targets"),
        ([SMILING | {"scale": 9}], "got scale 9"),
        ([{"positive": f"a{i}", "negative": f"b{i}", "scale": 1} for i in range(40)],
         "81 predictions a step; expected 64"),
    ],
)  # fmt: skip
def test_words_that_are_refused(sliders: list[dict], message: str) -> None:
    assert_problem(ask(stub_client(words=True), photo(0), sliders), 422, message)


def test_generations_take_words_but_no_target() -> None:
    taking = stub_client(words=True)
    body = {"prompt": "a person", "sliders": [SMILING]}
    assert taking.post("/v1/images/generations", json=body).status_code == 200
    body["sliders"] = [SMILING | {"target": "a person"}]
    assert_problem(taking.post("/v1/images/generations", json=body), 422, "got a target")


def test_a_key_says_whether_it_may_bring_words(tmp_path: Path) -> None:
    for names, status in ((["smile"], 422), (["smile", "words"], 200)):
        key, entry = new_key("team", sliders=names)
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
        taking = stub_client(words=True, keys=str(tmp_path / "keys.yaml"))
        taking.headers["authorization"] = f"Bearer {key}"
        assert ask(taking, photo(0), [SMILING]).status_code == status
        assert taking.get("/v1/sliders").json()["words"] is (status == 200)
