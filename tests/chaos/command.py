"""`bs-ray edit` as a process of its own, and all that it starts."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

_GONE_S = 20.0


class Command:
    """`bs-ray edit JOB.yaml`, running. Its session holds its Ray, if it started one."""

    def __init__(self, job: Path, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bs_ray", "edit", str(job)],
                env=env,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.session = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    @property
    def printed(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, to the driver alone."""
        self._process.kill()

    def clean_up(self) -> None:
        """End what a killed driver left behind."""
        self._process.kill()
        self._process.wait()
        end_session(self.session)


def session(leader: int, title: str = " ") -> list[psutil.Process]:
    """The living processes of a session whose command line holds `title`."""
    return [p for p in psutil.process_iter() if _sid(p.pid) == leader and title in _line(p)]


def alive(process: psutil.Process) -> bool:
    """Whether it is neither gone nor a zombie, which it may stay while its parent lives."""
    return bool(_line(process))


def end_session(leader: int) -> None:
    """SIGKILL to all processes of a session; returns when they are gone."""
    deadline = time.monotonic() + _GONE_S
    while left := session(leader):
        assert time.monotonic() < deadline, f"{left} outlived SIGKILL by {_GONE_S:g} s"
        for process in left:
            process.kill()
        time.sleep(0.05)


def _sid(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _line(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), ""])  # nothing, if it is a zombie
    except psutil.Error:  # ended meanwhile
        return ""
