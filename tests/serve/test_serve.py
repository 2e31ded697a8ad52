"""The real thing: Ray Serve around the embedded architecture."""

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray import serve

from bs_ray.batch.run import edit as edit_batch
from bs_ray.config import EditJob, JobError, ServeJob, shipped_job
from bs_ray.editing.editor import Editor, outputs_of
from bs_ray.editing.single_photo import OnePhoto
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound, DiffusionModel
from bs_ray.serve.deploy import build, check, running
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.testing import edit_of, random_slider
from tests.serve.api import ask, edited_pixels, far, files_of, free_port, photo, pixels_of, scales

TOLERANCE = 1e-5
"""Of full scale."""


@dataclass(frozen=True)
class World:
    """A base with random weights, and a registry with sliders for it."""

    job: ServeJob
    editor: Editor


@pytest.fixture(scope="module")
def world(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("serve")
    model = load_base(str(random_base))
    registry = Registry(str(folder / "sliders"))
    sliders = [registry.publish(slider_for(model, n, i)) for i, n in enumerate(["smile", "age"])]
    card = sliders[0].card.model_copy(update={"name": "foreign", "base_id": "elsewhere"})
    registry.publish(Slider(card, sliders[0].factors))
    other = card.model_copy(update={"name": "flow", "family": "sd3"})
    registry.publish(Slider(other, sliders[0].factors))
    job = shipped_job(
        "tiny/serve.yaml",
        [
            f"base={random_base}",
            f"registry={registry.store.uri}",
            f"port={free_port()}",
            f"outputs={folder / 'outputs'}",
            "refresh_s=0.5",
            "editor.steps=4",
            "autoscaling.max_replicas=1",
        ],
    )
    assert isinstance(job, ServeJob)
    return World(job, Editor(model, sliders, job.editor))


def slider_for(model: DiffusionModel, name: str, seed: int) -> Slider:
    """Random, and strong enough that a mixed-up strength shows."""
    slider = random_slider(model, name, seed)
    return Slider(slider.card, {layer: (a, 20 * b) for layer, (a, b) in slider.factors.items()})


# --- before anything starts -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sliders": ["smile", "beard"]}, SliderError, "expected one of age, flow, foreign, smile"),
        ({"sliders": ["smile@7"]}, SliderError, "expected a version of smile among"),
        ({"sliders": ["smile", "flow"]}, SliderError, "slider flow@1: got a base of the family"),
        (
            {"sliders": ["smile", "foreign"], "other_bases": "refuse"},
            SliderError,
            "slider foreign@1: got base",
        ),
        ({"sliders": ["smile", "smile@1"]}, SliderError, "smile more than once"),
        ({"base": "no/such/base"}, BaseNotFound, "no/such/base"),
    ],
)
def test_refused_before_start(world: World, change: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words), running(world.job.model_copy(update=change)):
        pytest.fail("started")


def test_sliders_of_another_base_are_served_with_a_note_and_never_by_a_star(world: World) -> None:
    job = world.job.model_copy(update={"sliders": ["smile", "foreign"], "port": free_port()})
    listed = check(job)
    assert not listed["smile"].card.elsewhere
    mix = Mix.of({"foreign": 1.0}, {"foreign": listed["foreign"].card})
    assert mix.notes == (f"foreign was trained on another base ({listed['foreign'].card.base})",)
    assert set(check(job.model_copy(update={"sliders": ["*"]}))) == {"smile", "age"}


def test_a_taken_port_is_refused(world: World) -> None:
    with (
        socket.create_server(("127.0.0.1", world.job.port)),
        pytest.raises(JobError, match=f"got 127.0.0.1:{world.job.port}.*add port="),
    ):
        check(world.job)


def test_build_takes_what_a_ray_service_gives(world: World, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps(world.job.model_dump()))
    assert isinstance(build({"job": str(path)}), serve.Application)
    with pytest.raises(JobError, match=r"got \['jobs'\]; expected job"):
        build({"jobs": str(path)})


# --- running ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served(world: World, ray_cluster: None) -> Iterator[httpx.Client]:
    with (
        running(world.job) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
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
        expected = edit_directly(world.editor, i, photos[i], mixes[i])
        assert far(edited_pixels(b), expected) <= TOLERANCE
        assert far(edited_pixels(b), pixels_of(photos[i])) > 100 * TOLERANCE


def edit_directly(editor: Editor, seed: int, data: bytes, mix: dict[str, float]) -> np.ndarray:
    edit = edit_of(editor, hashlib.sha256(data).hexdigest(), pixels_of(data), mix, seed=seed)
    return outputs_of(editor.edit([edit])[0])[0].pixels


def test_batch_edit_one_and_serve_give_the_same(
    served: httpx.Client, world: World, tmp_path: Path
) -> None:
    mix, seed = {"smile": 1.3, "age": -0.6}, 4
    data = photo(11, 80, 60)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(data)
    shared = {"base": world.job.base, "registry": world.job.registry, "editor": world.job.editor}
    edit_batch(
        EditJob(
            name="same",
            input=str(tmp_path / "in"),
            output=str(tmp_path / "out"),
            sliders=mix,
            seed=seed,
            **shared,
        )
    )
    [edited] = (tmp_path / "out").rglob("a.png")
    one = OnePhoto(
        tmp_path / "in" / "a.png",
        mix,
        world.job.editor,
        base=world.job.base,
        registry=world.job.registry,
        seed=seed,
    )
    (reply,) = files_of(ask(served, data, scales(**mix), seed=seed))
    pictures = [pixels_of(reply), pixels_of(edited.read_bytes()), pixels_of(one.edit()[0])]
    for picture in pictures[1:]:  # what lies within TOLERANCE may round to neighbours
        apart = np.abs(picture.astype(int) - pictures[0])
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01, (apart.max(), (apart > 0).mean())
    floats = edited_pixels(ask(served, data, scales(**mix), seed=seed, output_format="npy"))
    assert far(edit_directly(one.editor, seed, data, mix), floats) <= TOLERANCE
    one.editor.close()


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
    assert reply.status_code == 404 and "Not Found" in reply.json()["detail"]
    assert reply.headers.get_list("x-request-id") == ["r2"] and reply.json()["request_id"] == "r2"
    preview = served.get("/v1/sliders/age/preview")
    assert preview.headers["content-type"] == "image/png", preview.text
    body = {"prompt": "a man", "sliders": scales(age=1), "steps": 2}
    drawn = served.post("/v1/images/generations", json=body)
    assert pixels_of(files_of(drawn)[0]).shape == (64, 64, 3)
    url = ask(served, photo(0), scales(age=1), response_format="url").json()["data"][0]["url"]
    assert pixels_of(httpx.get(url, trust_env=False).content).shape == (64, 64, 3)


def test_events_come_while_it_computes(served: httpx.Client) -> None:
    form = {"sliders": json.dumps(scales(smile=1)), "stream": "true", "steps": "30"}
    names, came_s, asked_s = [], [], time.monotonic()
    with served.stream("POST", "/v1/images/edits", files={"image": photo(0)}, data=form) as reply:
        for line in reply.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
                came_s.append(time.monotonic() - asked_s)
    assert names == ["image_edit.progress"] * 29 + ["image_edit.completed"]
    assert came_s[0] < came_s[-1] / 2  # not all at the end


def test_a_client_that_leaves_frees_its_place(served: httpx.Client) -> None:
    """Nobody shares the batch long before its thousand steps could have ended."""
    with pytest.raises(httpx.ReadTimeout):
        served.post(
            "/v1/images/edits",
            files={"image": photo(0)},
            timeout=1.5,
            data={"sliders": json.dumps(scales(smile=1)), "steps": "1000"},
        )
    until(lambda: ask(served, photo(1), scales(smile=1)).json()["meta"]["batch_rows"] == 1, 8)


def test_what_cannot_be_in_time_is_refused_at_once(served: httpx.Client) -> None:
    answered: list[httpx.Response] = []

    async def both() -> None:
        async with httpx.AsyncClient(base_url=served.base_url, timeout=60) as client:
            form = {"sliders": json.dumps(scales(smile=1)), "steps": "60"}

            async def post(wait_s: float) -> None:
                await asyncio.sleep(wait_s)
                headers = {"x-request-timeout": "0.3"} if wait_s else {}
                reply = await client.post(
                    "/v1/images/edits", files={"image": photo(0)}, data=form, headers=headers
                )
                answered.append(reply)

            await asyncio.gather(post(0), post(0.3))

    asyncio.run(both())
    assert [reply.status_code for reply in answered] == [503, 200]  # while the first computes
    assert int(answered[0].headers["retry-after"]) >= 1


def test_a_new_version_is_served_without_a_restart(served: httpx.Client, world: World) -> None:
    before = ask(served, photo(0), scales(age=1), output_format="npy")
    Registry(world.job.registry).publish(slider_for(world.editor.model, "age", 9))
    until(lambda: "age@2" in used(ask(served, photo(0), scales(age=1))), 60)
    after = ask(served, photo(0), scales(age=1), output_format="npy")
    assert far(edited_pixels(before), edited_pixels(after)) > 100 * TOLERANCE
    old = ask(served, photo(0), [{"name": "age@1", "scale": 1}], output_format="npy")
    assert used(old) == ["age@1"] and far(edited_pixels(old), edited_pixels(before)) <= TOLERANCE


def used(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return list(reply.json()["meta"]["sliders"])


def until(condition, seconds: float) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.2)


def test_a_second_serve_is_refused(served: httpx.Client, world: World) -> None:
    other = world.job.model_copy(update={"port": free_port()})
    with pytest.raises(JobError, match="serves tiny already"), running(other):
        pytest.fail("started")
    assert served.get("/readyz").status_code == 200


def test_without_its_registry_it_goes_on_with_what_it_has(
    served: httpx.Client, world: World
) -> None:
    asked = scales(smile=1.0, age=0.5)
    before = edited_pixels(ask(served, photo(3), asked, output_format="npy"))
    there, elsewhere = Path(world.job.registry), Path(f"{world.job.registry}-away")
    there.rename(elsewhere)
    try:
        for _ in range(3):
            time.sleep(world.job.refresh_s)  # a look at the registry falls into this time
            reply = ask(served, photo(3), asked, output_format="npy")
            assert far(edited_pixels(reply), before) <= TOLERANCE
        assert [s["version"] for s in served.get("/v1/sliders").json()["data"]] == [1, 2]
    finally:
        elsewhere.rename(there)


def test_photos_of_millions_of_pixels(served: httpx.Client) -> None:
    data = photo(0, 1500, 2000, form="JPEG")
    (file,) = files_of(ask(served, data, scales(smile=1), output_format="jpeg"))
    found = pixels_of(file)
    assert found.shape == (1500, 2000, 3) and found.std() > 10
