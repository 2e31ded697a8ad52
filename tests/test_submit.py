"""Jobs travel to a real Ray head that asks for a token."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bs_ray.submit import SubmitError, job_kind, submit

# What stands in for `python -m bs_ray` on the cluster: it prints its arguments and the job.
STAND_IN = """
import sys, yaml
verb, path = sys.argv[1:]
job = yaml.safe_load(open(path))
print("verb", verb, "steps", job["steps"])
sys.exit(job.get("exit", 0))
"""

# In a process of its own, because Ray reads its token once per process.
CLIENT = """
import json, pathlib, sys
from rich.console import Console
from bs_ray.submit import SubmitError, submit
job, address, *prefix = sys.argv[1:]
out = {}
try:
    out["status"] = submit(pathlib.Path(job), address, entrypoint_prefix=prefix, console=Console())
except SubmitError as error:
    out["error"] = str(error)
print("RESULT " + json.dumps(out))
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _token_env(token: str) -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def _answers(address: str, token: str) -> bool:
    request = urllib.request.Request(f"{address}/api/version")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=2).status == 200
    except OSError:
        return False


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, str]]:
    """(address, token) of a Ray head started and stopped here, beside any other."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    names += ("dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    token = secrets.token_hex(32)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with tempfile.TemporaryDirectory(prefix="bsr-", ignore_cleanup_errors=True) as folder:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        command += ["--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        command += ["--dashboard-host=127.0.0.1", "--object-store-memory=100000000"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        log = Path(folder, "start.log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=_token_env(token), stdout=out, stderr=out, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 60
            while not _answers(address, token):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield address, token
        finally:
            _kill_family(process)


def _kill_family(process: "subprocess.Popen[bytes]") -> None:
    # `ray stop` would stop every Ray of this user; an orderly end takes over ten seconds.
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [psutil.Process(process.pid), *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(10)
    psutil.wait_procs(family, timeout=10)


def _submit_elsewhere(
    head: tuple[str, str], token: str, tmp_path: Path, job: str
) -> dict[str, str]:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    prefix = [sys.executable, str(tmp_path / "stand_in.py")]
    (tmp_path / "job.yaml").write_text(job)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path / "job.yaml"), head[0], *prefix],
        env=_token_env(token),
        capture_output=True,
        text=True,
        timeout=90,
    )
    lines = done.stdout.splitlines()
    assert lines and lines[-1].startswith("RESULT "), done.stdout + done.stderr
    return {"log": done.stdout, **json.loads(lines[-1].removeprefix("RESULT "))}


def test_job_runs_and_its_log_comes_back(head: tuple[str, str], tmp_path: Path) -> None:
    result = _submit_elsewhere(head, head[1], tmp_path, "kind: evaluate\nsteps: 7\n")
    assert result["status"] == "SUCCEEDED"
    assert "verb evaluate steps 7" in result["log"]


def test_failing_job_raises(head: tuple[str, str], tmp_path: Path) -> None:
    result = _submit_elsewhere(head, head[1], tmp_path, "kind: train\nsteps: 7\nexit: 3\n")
    assert "ended as FAILED" in result["error"] and "3" in result["error"]
    assert "verb train steps 7" in result["log"]


def test_wrong_token_is_refused(head: tuple[str, str], tmp_path: Path) -> None:
    result = _submit_elsewhere(head, "0" * 64, tmp_path, "kind: train\nsteps: 7\n")
    assert "refused the token" in result["error"] and "RAY_AUTH_TOKEN" in result["error"]


def test_nobody_there(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("kind: train\n")
    with pytest.raises(SubmitError, match=r"No Ray Jobs API at http://127\.0\.0\.1:9 .* 8265"):
        submit(job, "http://127.0.0.1:9")


@pytest.mark.parametrize("text", ["kind: cook\n", "steps: 1\n", "- a\n"])
def test_unknown_kind(tmp_path: Path, text: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(ValueError, match="expected `kind:` with one of train, edit, serve"):
        job_kind(job)
    with pytest.raises(ValueError, match="got verb 'cook', expected one of train"):
        submit(job, "http://127.0.0.1:9", verb="cook")


def test_unreadable_job(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        job_kind(tmp_path / "none.yaml")
