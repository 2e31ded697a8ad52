"""Of two drivers one works; the dead are superseded."""

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bs_ray.batch import lease as module
from bs_ray.batch.lease import JobTakenError, Lease, earlier_runs
from bs_ray.storage import Store


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.05)
    monkeypatch.setattr(module, "_WATCH_S", 0.4)
    monkeypatch.setattr(module, "_POLL_S", 0.02)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def test_the_living_are_left_to_their_work(output: Store) -> None:
    printed: list[str] = []
    with Lease(output, printed.append) as first:
        first.record = {"photos": 3}
        with pytest.raises(JobTakenError, match=r"process \d+ on .* is at work on this job"):
            Lease(output, printed.append).__enter__()
    assert len(printed) == 1 and not first.superseded
    with Lease(output, printed.append):
        pass
    assert len(printed) == 1  # the first had said that it was through
    assert earlier_runs(output) == [{"released": True, "photos": 3}]  # the second took none in


def test_the_dead_are_superseded_and_know_it_when_they_wake(output: Store) -> None:
    asleep = threading.Lock()

    class Sleepy(Store):
        def write(self, key: str, data: bytes) -> None:
            with asleep:  # as a process that is stopped, or a node that swaps
                super().write(key, data)

    with Lease(Sleepy(output.uri), print) as sleeper, ExitStack() as later:
        time.sleep(0.2)
        with asleep:  # no beat is on its way
            second = later.enter_context(Lease(output, print))
            second.record = {"photos": 1}
        deadline = time.monotonic() + 5
        while not sleeper.superseded and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sleeper.superseded and not second.superseded
    assert [run["released"] for run in earlier_runs(output)] == [True]


def test_of_many_at_once_one_gets_it(output: Store) -> None:
    output.write("_bs_ray/drivers/00001.json", json.dumps({"host": "h", "pid": 1}).encode())
    winners, losers, done = [], [], threading.Event()

    def race() -> None:
        try:
            with Lease(output, lambda _: None):
                winners.append(1)
                done.wait(5)
        except JobTakenError:
            losers.append(1)

    threads = [threading.Thread(target=race) for _ in range(5)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(losers) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 4)
