"""The playground in a real browser, in front of a stub that speaks the API."""

import asyncio
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from PIL import Image

from bs_ray.config import Prompts
from bs_ray.serve import playground
from bs_ray.serve.http.boxes import FaceBox, FacesReply
from bs_ray.serve.http.problems import Problem, handle_problems
from bs_ray.serve.http.schema import (
    EditRequest,
    ImageReply,
    ImagesReply,
    Meta,
    SliderInfo,
    SliderList,
    parse_form,
)
from tests.serve.api import listening, stub_app

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")

CSP = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'"
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
HTML = "<img src=x onerror=alert(1)>"
"""In texts of the server: must show as it stands."""


# --- the server ---------------------------------------------------------------------------------
@dataclass
class Stub:
    """A server whose edit adds 10 times the sum of the scales. Tests set how it behaves."""

    names: list[str] = field(default_factory=lambda: ["smile", "age", "hair_length"])
    key: str | None = None
    words: bool = False
    refusals: list[Problem] = field(default_factory=list)
    """Raised by the next edits, one each."""
    step_s: float = 0.0
    url: str = ""
    faces: list[FaceBox] = field(default_factory=list)
    """Found in every photo."""
    region: str = "photo"
    finds_faces: bool = True
    edits: list[EditRequest] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    given_up: int = 0
    """Edits whose caller left before the end."""

    def admit(self, request: Request) -> None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise Problem(401, "wrong-key", f"got no valid key {HTML}; expected one")

    def app(self) -> FastAPI:
        app = FastAPI()
        handle_problems(app)

        @app.get("/")
        async def page() -> HTMLResponse:
            return HTMLResponse(playground.page(), headers={"Content-Security-Policy": CSP})

        @app.get("/v1/sliders")
        async def sliders(request: Request) -> SliderList:
            self.admit(request)
            infos = [slider_info(name) for name in self.names]
            return SliderList(
                data=infos, max_strength=3.0, finds_faces=self.finds_faces, words=self.words
            )

        @app.post("/v1/images/faces")
        async def find(request: Request) -> FacesReply:
            self.admit(request)
            return FacesReply(width=64, height=64, faces=self.faces, region=self.region)

        @app.post("/v1/images/edits", response_model=None)
        async def edit(request: Request) -> Response | ImagesReply:
            self.arrivals.append(time.monotonic())
            self.admit(request)
            if self.refusals:
                raise self.refusals.pop(0)
            asked = await read_form(request)
            self.edits.append(asked)
            if asked.stream:
                return StreamingResponse(self.events(asked), media_type="text/event-stream")
            return reply_to(asked)

        return app

    async def events(self, asked: EditRequest) -> AsyncIterator[str]:
        ended = False
        try:
            for step in range(1, 4):
                await asyncio.sleep(self.step_s)
                yield event("image_edit.progress", step=step, steps=3)
            reply = reply_to(asked)
            for index, picture in enumerate(reply.data):
                meta = reply.meta.model_dump(mode="json")
                yield event(
                    "image_edit.completed", b64_json=picture.b64_json, index=index, meta=meta
                )
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            self.given_up += not ended


def event(kind: str, **members: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n"


def slider_info(name: str) -> SliderInfo:
    """`smile` is calibrated, others are not."""
    return SliderInfo(
        name=name,
        version=1,
        base="tiny",
        base_id="0" * 16,
        rank=4,
        prompts=Prompts(target="face", positive=f"face, {name}", negative=HTML),
        range=(-1.37, 2.11) if name == "smile" else None,
        unit=None,
        preview=f"/v1/sliders/{name}/preview",
    )


async def read_form(request: Request) -> EditRequest:
    fields = []
    for name, value in (await request.form()).multi_items():
        fields.append((name, value if isinstance(value, str) else await value.read()))
    return parse_form(EditRequest, fields)


def reply_to(asked: EditRequest) -> ImagesReply:
    mixes = asked.mixes()
    pictures = [brighter(asked.image[0], 10 * sum(mix.values())) for mix in mixes]
    meta = Meta(
        request_id="r",
        batch_rows=1,
        queue_seconds=0,
        seconds=0.25,
        base_id="0" * 16,
        sliders={f"{name}@1": scale for name, scale in mixes[0].items()},
        seed=asked.seed,
        sweep=asked.sweep.scales if asked.sweep else [],
        notes=[f"age: +2 is a lot {HTML}"] if mixes[0].get("age") == 2 else [],
    )
    data = [ImageReply(b64_json=base64.b64encode(picture).decode()) for picture in pictures]
    return ImagesReply(created=0, data=data, meta=meta)


def brighter(photo: bytes, by: float) -> bytes:
    pixels = np.clip(pixels_of(photo) + round(by), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The stub's switches and what it was asked. Served while the test runs."""
    stub = Stub()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server = uvicorn.Server(uvicorn.Config(stub.app(), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield stub
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page_url(stub: Stub) -> str:
    """Where the page is served, its API beside it."""
    return stub.url


# --- the browser --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What the page logged as an error. A test that provokes one takes it out."""
    return []


@pytest.fixture
def page(browser: Any, page_url: str, errors: list[str]) -> Iterator[Any]:
    """The page before it is opened. At the end: no errors, and no host but the server."""
    context = browser.new_context(accept_downloads=True, viewport={"width": 1200, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(10_000)
    asked_hosts = set()
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked_hosts.add(urlsplit(request.url).netloc))
    yield page
    context.close()
    assert errors == []
    assert asked_hosts <= {urlsplit(page_url).netloc, ""}, "blob: and data: have no host"


def refused(errors: list[str], status: int) -> None:
    """Take out the browser's own lines about replies with that status."""
    wanted = f"status of {status}"
    assert any(wanted in line for line in errors)
    errors[:] = [line for line in errors if wanted not in line]


def expect(locator: Any) -> Any:
    return sync_api.expect(locator)


def face(seed: int = 3) -> bytes:
    from bs_ray.tiny.faces import render, sample_scenes

    picture = ((render(sample_scenes(1, seed))[0].permute(1, 2, 0) + 1) * 127.5).round()
    file = io.BytesIO()
    Image.fromarray(picture.numpy().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


PHOTO = face()


def open_with_photo(page: Any, url: str, name: str = "ada.png") -> None:
    page.goto(url)
    upload = {"name": name, "mimeType": "image/png", "buffer": PHOTO}
    page.get_by_label("Choose a photo").set_input_files(upload)
    expect(page.get_by_alt_text("Photo after the edit")).to_be_visible()


def press(page: Any, slider: str, key: str, times: int) -> None:
    handle = page.get_by_role("slider", name=slider, exact=True)
    handle.focus()
    for _ in range(times):
        handle.press(key)


def shown(page: Any, picture: str = "after") -> np.ndarray:
    """The pixels of a picture in the page."""
    url = page.evaluate(
        """async (id) => {
            const image = document.getElementById(id);
            await image.decode();
            const canvas = document.createElement("canvas");
            Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png");
        }""",
        picture,
    )
    return pixels_of(base64.b64decode(url.partition(",")[2]))


def expected(by: float) -> np.ndarray:
    return pixels_of(brighter(PHOTO, by))


def wait_done(page: Any) -> None:
    """Until the picture is that of the sliders as they are."""
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#status")).to_have_text("Done in 0.25 s")


def until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not so after 10 s")


def as_dict(asked: EditRequest) -> dict[str, float]:
    return {slider.key: slider.scale for slider in asked.sliders}


def test_the_real_api_stands_behind_the_page(browser: Any) -> None:
    """The stub above is the tests' own: this is `create_app`, with its headers and its checks."""
    with listening(stub_app()) as url:
        page, said = browser.new_page(), []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        open_with_photo(page, f"{url}/")
        press(page, "smile", "ArrowRight", 20)
        expect(page.locator("#status")).to_contain_text("Done in")
        assert np.array_equal(shown(page), expected(10))
        page.get_by_role("button", name="Draw strip").click()
        expect(page.locator("#strip img")).to_have_count(5)
        page.close()
    assert said == []


# --- photos -------------------------------------------------------------------------------------
def test_a_photo_is_chosen_and_shown_unchanged(page: Any, page_url: str, stub: Stub) -> None:
    page.goto(page_url)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a photo").click()
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": PHOTO})
    expect(page.get_by_alt_text("Photo before the edit")).to_be_visible()
    assert np.array_equal(shown(page, "before"), pixels_of(PHOTO))
    assert np.array_equal(shown(page), pixels_of(PHOTO))
    assert page.get_by_role("button", name="Download").is_disabled()
    page.wait_for_timeout(300)
    assert stub.edits == [], "at 0 the photo is the answer; there is nothing to ask"


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page: Any, page_url: str, way: str) -> None:
    page.goto(page_url)
    page.evaluate(
        """([data, way]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "ben.png", {type: "image/png"}));
            const target = document.getElementById("drop");
            const shared = {bubbles: true, cancelable: true};
            target.dispatchEvent(way === "drop"
                ? new DragEvent("drop", {...shared, dataTransfer: transfer})
                : new ClipboardEvent("paste", {...shared, clipboardData: transfer}));
        }""",
        [base64.b64encode(PHOTO).decode(), way],
    )
    expect(page.get_by_alt_text("Photo before the edit")).to_be_visible()
    assert np.array_equal(shown(page, "before"), pixels_of(PHOTO))


def test_a_file_that_is_no_picture_is_said_to_be_none(page: Any, page_url: str) -> None:
    page.goto(page_url)
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.get_by_label("Choose a photo").set_input_files(text)
    expect(page.get_by_role("alert")).to_contain_text("notes.txt: got no picture")


# --- sliders ------------------------------------------------------------------------------------
def test_two_sliders_by_keyboard_make_one_edit(page: Any, page_url: str, stub: Stub) -> None:
    open_with_photo(page, page_url)
    press(page, "smile", "ArrowRight", 10)
    press(page, "age", "ArrowLeft", 4)
    wait_done(page)
    sync_api.expect(page.locator(".row.moved .value")).to_have_text(["+0.50", "\u22120.20"])
    assert as_dict(stub.edits[-1]) == {"smile": 0.5, "age": -0.2}
    assert (stub.edits[-1].seed, stub.edits[-1].quality) == (0, "fast")
    assert stub.edits[-1].image == [PHOTO]
    assert np.array_equal(shown(page), expected(3))


def test_sliders_have_their_range_and_stop_at_0(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    ranges = [
        [page.get_by_role("slider", name=name).get_attribute(end) for end in ("min", "max")]
        for name in ("smile", "age")
    ]
    assert ranges == [["-1.35", "2.1"], ["-2", "2"]]
    press(page, "smile", "Home", 1)
    press(page, "smile", "ArrowRight", 27)
    expect(page.get_by_role("slider", name="smile")).to_have_value("0")


def test_sliders_go_back_to_0(page: Any, page_url: str, stub: Stub) -> None:
    open_with_photo(page, page_url)
    smile = page.get_by_role("slider", name="smile")
    for back in (
        lambda: page.get_by_role("button", name="Reset smile").click(),
        lambda: smile.dblclick(position={"x": 40, "y": 12}),
        lambda: page.get_by_role("button", name="Reset all").click(),
    ):
        press(page, "smile", "End", 1)
        wait_done(page)
        back()
        expect(smile).to_have_value("0")
        expect(page.locator("#status")).to_have_text("Move a slider to change the face")
        assert np.array_equal(shown(page), pixels_of(PHOTO))


def test_moves_are_undone_and_redone(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    press(page, "smile", "ArrowRight", 3)
    press(page, "age", "ArrowRight", 2)
    values = page.locator(".row .value")
    for keys, after in (
        ("Control+z", ["+0.15", "0.00"]),
        ("Control+z", ["0.00", "0.00"]),
        ("Control+Shift+z", ["+0.15", "0.00"]),
        ("Control+y", ["+0.15", "+0.10"]),
    ):
        page.keyboard.press(keys)
        expect(values).to_have_text([*after, "0.00"])
    wait_done(page)
    assert np.array_equal(shown(page), expected(2.5))


def test_a_newer_edit_aborts_the_one_in_flight(page: Any, page_url: str, stub: Stub) -> None:
    stub.step_s = 1.0
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    bar = page.get_by_role("progressbar", name="Drawing")
    expect(bar).to_be_visible()
    expect(page.locator("#status")).to_have_text("Drawing")
    expect(bar).to_have_attribute("value", "1")
    stub.step_s = 0.0
    press(page, "smile", "Home", 1)
    wait_done(page)
    expect(bar).to_be_hidden()
    assert [as_dict(asked) for asked in stub.edits] == [{"smile": 2.1}, {"smile": -1.35}]
    until(lambda: stub.given_up == 1)
    assert np.array_equal(shown(page), expected(-13.5))


def test_a_drag_asks_when_it_rests(page: Any, page_url: str, stub: Stub) -> None:
    open_with_photo(page, page_url)
    box = page.get_by_role("slider", name="age").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 5, steps=20)
    page.mouse.up()
    wait_done(page)
    assert as_dict(stub.edits[-1]) == {"age": 2.0}
    assert len(stub.edits) < 10, "of 20 moves"
    expect(page.locator("#notes")).to_have_text(f"age: +2 is a lot {HTML}")


def test_many_sliders_have_a_filter(page: Any, page_url: str, stub: Stub) -> None:
    page.goto(page_url)
    expect(page.get_by_role("slider", name="smile")).to_be_visible()
    expect(page.get_by_label("Filter sliders")).to_be_hidden()
    stub.names = [f"long_hair_{i}" for i in range(12)] + ["smile"]
    page.reload()
    page.get_by_label("Filter sliders").fill("HAIR 1")
    sync_api.expect(page.locator(".row:visible")).to_have_count(3)  # 1, 10 and 11
    expect(page.locator("#filter-count")).to_have_text("3 of 13 sliders")


def test_seed_and_quality_go_along(page: Any, page_url: str, stub: Stub) -> None:
    open_with_photo(page, page_url)
    press(page, "age", "ArrowRight", 1)
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("radio", name="High").check()
    wait_done(page)
    assert (stub.edits[-1].seed, stub.edits[-1].quality) == (7, "high")


# --- faces --------------------------------------------------------------------------------------
FACES = [
    FaceBox(box=[8, 6, 40, 44], eyes=[[16, 20], [32, 20]], score=0.9),
    FaceBox(box=[44, 40, 60, 60], score=0.8),
]


def test_a_face_is_chosen_by_keyboard(page: Any, page_url: str, stub: Stub) -> None:
    stub.faces = FACES
    open_with_photo(page, page_url)
    choices = page.get_by_role("group", name="Edit").get_by_role("radio")
    sync_api.expect(choices).to_have_count(4)
    expect(page.get_by_role("radio", name="Whole photo")).to_be_checked()
    press(page, "smile", "ArrowRight", 2)
    wait_done(page)
    assert stub.edits[-1].region == "photo" and not stub.edits[-1].boxes
    page.get_by_role("radio", name="Whole photo").focus()
    for region, boxes, marked in (("face", None, 2), (None, FACES[:1], 1), (None, FACES[1:], 1)):
        asked = len(stub.edits)
        page.keyboard.press("ArrowRight")
        until(lambda asked=asked: len(stub.edits) > asked)
        wait_done(page)
        assert (stub.edits[-1].region, stub.edits[-1].boxes) == (region, boxes)
        sync_api.expect(page.locator("#boxes .chosen")).to_have_count(marked)
    assert '"box":[44,40,60,60]' in page.locator("#code").inner_text().replace(".0", "")


def test_a_face_is_chosen_in_the_photo(page: Any, page_url: str, stub: Stub) -> None:
    """Its box does not move the wipe, and lies where the face is."""
    stub.faces = FACES
    open_with_photo(page, page_url)
    press(page, "smile", "ArrowRight", 2)
    stage = page.locator("#stage").bounding_box()
    boxes = [box.bounding_box() for box in page.locator("#boxes div").all()]
    assert boxes[0]["x"] - stage["x"] == pytest.approx(stage["width"] * 8 / 64, abs=1)
    assert boxes[0]["height"] == pytest.approx(stage["height"] * 38 / 64, abs=1)
    page.mouse.click(stage["x"] + stage["width"] * 0.8, stage["y"] + stage["height"] * 0.8)
    until(lambda: bool(stub.edits) and stub.edits[-1].boxes == FACES[1:])
    expect(page.get_by_role("radio", name="Face 2")).to_be_checked()
    expect(page.locator("#divider")).to_have_attribute("aria-valuenow", "50")


def test_the_servers_own_region_is_chosen_first(page: Any, page_url: str, stub: Stub) -> None:
    stub.faces, stub.region = FACES, "face"
    open_with_photo(page, page_url)
    expect(page.get_by_role("radio", name="All 2 faces")).to_be_checked()
    stub.finds_faces = False
    open_with_photo(page, page_url)
    press(page, "smile", "ArrowRight", 2)
    wait_done(page)
    expect(page.locator("#faces")).to_be_hidden()
    assert stub.edits[-1].region is None, "where none can be found, the server decides"


# --- before and after ---------------------------------------------------------------------------
def test_the_wipe_moves_by_keyboard(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    divider = page.get_by_role("slider", name="Divider between before and after")
    divider.focus()
    for keys, percent in (
        (["ArrowLeft"], 48),
        (["Shift+ArrowRight"], 58),
        (["PageUp"], 68),
        (["Home"], 0),
        (["ArrowLeft"], 0),
        (["End"], 100),
        (["PageDown", "ArrowDown"], 88),
    ):
        for key in keys:
            divider.press(key)
        expect(divider).to_have_attribute("aria-valuenow", str(percent))
        expect(divider).to_have_attribute("aria-valuetext", f"{percent} % before")
        clip = page.locator("#after").evaluate("(image) => getComputedStyle(image).clipPath")
        assert clip.rstrip(")").split()[-1] in (f"{percent}%", "0px")


def test_the_wipe_moves_by_pointer(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    wait_done(page)
    divider = page.get_by_role("slider", name="Divider between before and after")
    box = page.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.up()
    expect(divider).to_have_attribute("aria-valuenow", "25")
    page.mouse.move(0, 0)
    expect(divider).to_have_attribute("aria-valuenow", "25")
    page.get_by_role("radio", name="After").check()
    expect(divider).to_have_attribute("aria-valuenow", "0")


# --- sweep, code, download ----------------------------------------------------------------------
def test_a_sweep_has_five_pictures_that_set_the_slider(
    page: Any, page_url: str, stub: Stub
) -> None:
    open_with_photo(page, page_url)
    press(page, "age", "ArrowRight", 2)
    press(page, "smile", "ArrowRight", 2)
    wait_done(page)
    page.get_by_label("Slider to sweep").select_option("smile")
    page.get_by_role("button", name="Draw strip").click()
    pictures = page.get_by_role("list", name="Pictures of the sweep").get_by_role("img")
    sync_api.expect(pictures).to_have_count(5)
    scales = [-1.35, -0.65, 0, 1.05, 2.1]
    captions = ["\u22121.35", "\u22120.65", "0.00", "+1.05", "+2.10"]
    alts = [picture.get_attribute("alt") for picture in pictures.all()]
    assert alts == [f"smile at {caption}" for caption in captions]
    expect(page.locator("#strip span")).to_have_text(captions)
    asked = stub.edits[-1]
    assert (as_dict(asked), asked.sweep.name) == ({"age": 0.1}, "smile")
    assert asked.sweep.scales == scales

    page.get_by_role("button", name="smile at +1.05").click()
    expect(page.get_by_role("slider", name="smile")).to_have_value("1.05")
    expect(page.get_by_role("button", name="smile at +1.05")).to_have_attribute(
        "aria-pressed", "true"
    )
    press(page, "age", "ArrowRight", 1)
    expect(page.locator("#sweep-note")).to_have_text("Of earlier settings; draw it again")


def test_words_become_a_slider(page: Any, page_url: str, stub: Stub) -> None:
    stub.words = True
    open_with_photo(page, page_url)
    page.get_by_label("Towards").fill("face, grinning")
    page.get_by_label("Away from").fill(HTML)
    page.get_by_role("button", name="Add slider of words").click()
    added = f"face, grinning / {HTML}"
    expect(page.get_by_role("slider", name=added, exact=True)).to_have_value("1")
    press(page, added, "ArrowRight", 10)
    wait_done(page)
    [asked] = stub.edits[-1].sliders
    assert (asked.name, asked.positive, asked.negative) == (None, "face, grinning", HTML)
    assert asked.scale == 1.5 and np.array_equal(shown(page), expected(15))
    assert '{"positive": "face, grinning", "negative": ' in copied(page, "Python")
    page.get_by_label("Slider to sweep").select_option(added)
    page.get_by_role("button", name="Draw strip").click()
    expect(page.locator("#strip img")).to_have_count(5)
    sweep = stub.edits[-1].sweep
    assert sweep and (sweep.positive, sweep.scales) == ("face, grinning", [-2, -1, 0, 1, 2])
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ada_face-grinning+1.50.png"


def test_words_are_asked_for_where_the_server_takes_them(page: Any, page_url: str) -> None:
    page.goto(page_url)
    expect(page.get_by_role("slider", name="smile")).to_be_visible()
    expect(page.locator("#words")).to_be_hidden()


def copied(page: Any, language: str) -> str:
    page.get_by_role("radio", name=language).check()
    page.get_by_role("button", name=f"Copy as {language}").click()
    expect(page.locator("#status")).to_have_text(f"Copied as {language}")
    return page.evaluate("() => navigator.clipboard.readText()")


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_copied_code_makes_the_same_picture(
    page: Any, page_url: str, language: str, tmp_path: Path
) -> None:
    if language == "Python":
        pytest.importorskip("openai", reason="needs openai: pip install openai")
    name = "Ada's photo, 1;2.png"
    (tmp_path / name).write_bytes(PHOTO)
    open_with_photo(page, page_url, name)
    press(page, "smile", "ArrowRight", 10)
    press(page, "age", "ArrowLeft", 4)
    wait_done(page)
    code = copied(page, language)
    run = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    local = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    subprocess.run(run, cwd=tmp_path, env=local, check=True, timeout=60)
    made = tmp_path / "Ada-s-photo-1-2_smile+0.50_age-0.20.png"
    assert np.array_equal(pixels_of(made.read_bytes()), shown(page))
    assert np.array_equal(shown(page), expected(3))


def test_copied_code_names_the_key_and_does_not_hold_it(
    page: Any, page_url: str, stub: Stub, errors: list[str]
) -> None:
    stub.key = "a-secret"
    page.goto(page_url)
    page.get_by_label("API key").fill("a-secret")
    page.get_by_role("button", name="Use key").click()
    refused(errors, 401)
    curl, python = copied(page, "curl"), copied(page, "Python")
    assert '-H "Authorization: Bearer $BS_RAY_API_KEY"' in curl
    assert 'api_key=os.environ["BS_RAY_API_KEY"]' in python
    assert "a-secret" not in curl + python


def test_the_download_is_the_servers_png(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    press(page, "smile", "ArrowRight", 10)
    wait_done(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ada_smile+0.50.png"
    assert Path(download.value.path()).read_bytes() == brighter(PHOTO, 5)


def test_a_jpeg_stays_one(page: Any, page_url: str, stub: Stub) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels_of(PHOTO).astype(np.uint8)).save(file, "JPEG")
    page.goto(page_url)
    upload = {"name": "ada.jpeg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    page.get_by_label("Choose a photo").set_input_files(upload)
    press(page, "smile", "ArrowRight", 10)
    wait_done(page)
    assert stub.edits[-1].output_format == "jpeg"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "ada_smile+0.50.jpg"
    assert "output_format=jpeg" in page.locator("#code").inner_text()


# --- when things go wrong -----------------------------------------------------------------------
def busy(retry_after: str | None) -> Problem:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Problem(429, "rate-limited", f"got too many {HTML}; wait", headers=headers)


def test_429_is_asked_again_after_its_wait(
    page: Any, page_url: str, stub: Stub, errors: list[str]
) -> None:
    stub.refusals = [busy("1")]
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    expect(page.locator("#status")).to_have_text("The server is busy; trying again in 1 s")
    wait_done(page)
    first, second = stub.arrivals
    assert 1.0 <= second - first < 3.0
    assert np.array_equal(shown(page), expected(21))
    expect(page.get_by_role("alert")).to_have_text("")
    refused(errors, 429)


@pytest.mark.parametrize("waits, asked", [(["1", "1"], 2), ([None], 1), (["3600"], 1)])
def test_429_that_stays_is_announced(
    page: Any, page_url: str, stub: Stub, errors: list[str], waits: list, asked: int
) -> None:
    stub.refusals = [busy(wait) for wait in waits]
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    expect(page.get_by_role("alert")).to_have_text(f"got too many {HTML}; wait")
    assert len(stub.arrivals) == asked
    refused(errors, 429)
    page.get_by_role("button", name="Try again").click()
    wait_done(page)
    expect(page.get_by_role("alert")).to_have_text("")


def test_an_error_after_the_start_is_announced(page: Any, page_url: str, stub: Stub) -> None:
    async def events(asked: EditRequest) -> AsyncIterator[str]:
        yield event("image_edit.progress", step=1, steps=3)
        yield event("error", **Problem(500, "internal-error", "the request failed").body("r"))
        yield "data: [DONE]\n\n"

    stub.events = events  # type: ignore[method-assign]
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    expect(page.get_by_role("alert")).to_have_text("the request failed")


def test_a_server_that_is_gone_is_announced(
    page: Any, page_url: str, stub: Stub, errors: list[str]
) -> None:
    open_with_photo(page, page_url)
    page.context.set_offline(True)
    press(page, "smile", "End", 1)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    assert all("ERR_INTERNET_DISCONNECTED" in line for line in errors)
    errors.clear()


def test_the_key_is_asked_for_after_a_401(
    page: Any, page_url: str, stub: Stub, errors: list[str]
) -> None:
    stub.key = "a-secret"
    page.goto(page_url)
    key = page.get_by_label("API key")
    expect(page.get_by_role("alert")).to_have_text(f"got no valid key {HTML}; expected one")
    expect(key).to_be_focused()
    key.fill("wrong")
    key.press("Enter")
    expect(key).to_be_visible()
    key.fill("a-secret")
    key.press("Enter")
    expect(page.get_by_role("slider", name="smile")).to_be_visible()
    expect(key).to_be_hidden()
    refused(errors, 401)
    stored = "() => [sessionStorage.length, localStorage.length, document.cookie]"
    assert page.evaluate(stored) == [1, 0, ""]
    open_with_photo(page, page_url)
    press(page, "smile", "End", 1)
    wait_done(page)
    expect(key).to_be_hidden()


def test_no_key_is_asked_for_where_none_is_needed(page: Any, page_url: str) -> None:
    open_with_photo(page, page_url)
    expect(page.get_by_label("API key")).to_be_hidden()


# --- for everyone -------------------------------------------------------------------------------
NAMED = {"slider", "button", "radio", "textbox", "searchbox", "spinbutton", "combobox", "image"}


def full_page(page: Any, url: str) -> None:
    """The page with everything it can show."""
    open_with_photo(page, url)
    press(page, "smile", "ArrowRight", 20)
    wait_done(page)
    page.get_by_role("button", name="Draw strip").click()
    sync_api.expect(page.locator("#strip img")).to_have_count(5)
    page.evaluate("() => fail(Object.assign(new Error('a problem'), {status: 401}), edit)")


def test_everything_has_an_accessible_name(page: Any, page_url: str, stub: Stub) -> None:
    stub.faces = FACES
    full_page(page, page_url)
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"] and node["role"]["value"].lower() in NAMED
    ]
    assert len(found) > 25
    assert [role for role, name in found if not name] == []
    assert ("slider", "hair length") in found


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1200),
        ("dark", 360),
        pytest.param("light", 360, marks=pytest.mark.slow),
        pytest.param("dark", 1200, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing(page: Any, page_url: str, stub: Stub, scheme: str, width: int) -> None:
    stub.faces = FACES
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="needs axe: pip install axe-playwright-python",
    )
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(page_url)
    for state in (lambda: page.wait_for_selector(".row"), lambda: full_page(page, page_url)):
        state()
        result = axe.Axe().run(page)
        assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_runs_off_the_side(page: Any, page_url: str, stub: Stub, width: int) -> None:
    stub.faces = FACES * 9
    page.set_viewport_size({"width": width, "height": 800})
    full_page(page, page_url)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_the_page_asks_for_nothing_outside_itself() -> None:
    text = playground.page()
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text
    known = {"http://www.w3.org/2000/svg"}
    addresses = {word.strip("'\"") for word in text.replace("=", " ").split() if "://" in word}
    assert addresses == known
