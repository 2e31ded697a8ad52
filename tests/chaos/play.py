"""Play a scenario: run the command, strike at the step, run it again until it has finished."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bs_ray.storage.seaweed import LocalObjectStore
from tests.chaos.cluster import Nodes
from tests.chaos.command import Command, session
from tests.chaos.invariant import check_flips
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios import Scenario

_RUNS = 5  # of the command, at most
_RUN_S = 400.0  # each, at most; Ray alone takes a minute to start on a busy machine
_EDITOR_S = 120.0
_OUTAGE_S = 4.0
_STALL_S = 18.0  # longer than a silent read may take


@dataclass
class Play:
    """A scenario and its stage. `disk`: a small file system for the victims `... disk`."""

    scenario: Scenario
    job: Path
    store: LocalObjectStore
    proxy: Proxy
    env: Mapping[str, str]
    """Of the command: its store is the proxy."""
    log: Path
    disk: Path
    nodes: Nodes | None
    """The cluster to join; None: the command starts a Ray of its own."""
    struck: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run the command until it exits 0; every failure before is one that explains itself."""
        for number in range(_RUNS):
            self.proxy.arm(dict(enumerate(self.scenario.steps)).get(number))
            before, start = len(self.proxy.events), time.monotonic()
            code, printed = self._run_once()
            flips = check_flips(self.proxy.events[before:], failed=code != 0)
            self.notes.append(f"exit {code} after {time.monotonic() - start:.0f} s, {dict(flips)}")
            if code == 0:
                assert self.struck or not self.scenario.steps, "the step was never reached"
                return
            assert code == -signal.SIGKILL or (
                "error:" in printed and "Traceback" not in printed
            ), printed
        raise AssertionError(f"still failing after {_RUNS} runs, the last with: {printed}")

    def _run_once(self) -> tuple[int, str]:
        if self.nodes:
            self.nodes.settle()
        self.command = Command(self.job, self.env, self.log)
        deadline = time.monotonic() + _RUN_S
        try:
            while self.command.code is None:
                assert time.monotonic() < deadline, f"no end after {_RUN_S:g} s: {self._told()}"
                if not self.proxy.go.is_set() and self.proxy.reached.wait(0.1):
                    with VICTIMS[self.scenario.victim](self):
                        self.struck += 1
                        self.proxy.go.set()
                time.sleep(0.05)
            return self.command.code, self._told()
        finally:
            self.command.clean_up()

    def _told(self) -> str:
        return f"{self.command.printed}\n({self.notes})"

    def editors(self) -> list[int]:
        """The pids of the actors that hold the model, as soon as there are any."""
        leader = self.nodes.session if self.nodes else self.command.session
        deadline = time.monotonic() + _EDITOR_S
        while not (found := session(leader, "EditShard")):
            assert time.monotonic() < deadline, f"no editor after {_EDITOR_S:g} s"
            time.sleep(0.1)
        return [process.pid for process in found]


# ------------------------------------------------------------------ who is struck, and how it ends
#
# The request at the step waits until the strike is done; what comes after `yield` heals.


@contextmanager
def _driver(play: Play) -> Iterator[None]:
    play.command.kill()
    yield


@contextmanager
def _worker(play: Play) -> Iterator[None]:
    os.kill(play.editors()[0], signal.SIGKILL)
    yield


@contextmanager
def _raylet(play: Play) -> Iterator[None]:
    assert play.nodes
    play.nodes.kill_raylet(play.scenario.seed // 2 % 2)
    yield


@contextmanager
def _store(play: Play) -> Iterator[None]:
    play.store.crash()
    yield
    time.sleep(_OUTAGE_S)
    play.store.restart()


@contextmanager
def _stall(play: Play) -> Iterator[None]:
    os.kill(play.store.pid, signal.SIGSTOP)
    yield
    time.sleep(_STALL_S)
    os.kill(play.store.pid, signal.SIGCONT)


@contextmanager
def _store_disk(play: Play) -> Iterator[None]:
    ballast = _fill(play.disk)
    yield
    time.sleep(_OUTAGE_S)
    ballast.unlink()
    # As its operator would: what it keeps its metadata in refuses writes until it is started again.
    play.store.crash()
    play.store.restart()


@contextmanager
def _folder_disk(play: Play) -> Iterator[None]:
    ballast = _fill(play.disk)
    yield
    deadline = time.monotonic() + _RUN_S
    while play.command.code is None:  # no store to wait for: the job gives up at once
        assert time.monotonic() < deadline, "the job did not end on a full disk"
        time.sleep(0.1)
    assert play.command.code == 1 and "space" in play.command.printed, play.command.printed
    ballast.unlink()


def _fill(disk: Path) -> Path:
    """Leave no byte free; the returned file holds them all."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


VICTIMS: dict[str, Callable[[Play], AbstractContextManager[None]]] = {
    "driver": _driver,
    "worker": _worker,
    "raylet": _raylet,
    "store": _store,
    "weather": lambda play: nullcontext(),
    "stall": _stall,
    "store disk": _store_disk,
    "folder disk": _folder_disk,
}
