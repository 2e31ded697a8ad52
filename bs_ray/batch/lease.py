"""One driver at a time: the process that runs a job leaves a sign at the job's output, repeatedly.

    _bs_ray/drivers/00001.json   which process took the job over, written once
    _bs_ray/drivers/00001.beat   rewritten while it lives, and once more when it has finished

A driver that finds the driver before it alive leaves the job to it. A driver that has died is
superseded by the next number, which has exactly one writer. The lease saves work; correctness does
not depend on it, since two drivers would write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from bs_ray.storage import MissingKeyError, StorageError, Store

_BEAT_S = 2.0
_WATCH_S = 3 * _BEAT_S  # a driver whose beat does not change for so long is dead
_POLL_S = 0.5
_FOLDER = "_bs_ray/drivers"


class JobTakenError(RuntimeError):
    """Another driver is at work on this output; the message says which."""


class Lease:
    """The right to run a job, within a `with`. Entering raises JobTakenError where a driver lives.

    report(line) is called once when it takes a while to see whether the driver before is alive.
    """

    def __init__(self, output: Store, report: Callable[[str], None]):
        self.output, self._report = output, report
        self.superseded = False
        """Whether another driver has taken over, because it saw no beat of this one in time."""
        self.record: dict[str, Any] = {}
        """What the last beat says of this run, for the report: JSON values."""
        self._stop = threading.Event()

    def __enter__(self) -> Lease:
        self._number = self._take()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self.superseded:
            with contextlib.suppress(StorageError):  # then the next driver waits a little
                self._write_beat({"released": True, **self.record})

    def _take(self) -> int:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        while True:
            last = self._last()
            if last:
                self._wait_until_gone(last)
            if self.output.write_if_absent(_key(last + 1, "json"), json.dumps(owner).encode()):
                return last + 1

    def _last(self) -> int:
        entries = self.output.walk(_FOLDER + "/")
        return max((_number(e.key) for e in entries if e.key.endswith(".json")), default=0)

    def _wait_until_gone(self, number: int) -> None:
        """Return once that driver has finished, or has shown no beat for a while.

        Raises JobTakenError where it is alive.
        """
        first = self._read(number)
        if first.get("released"):
            return
        self._report(
            f"waiting up to {_WATCH_S:g} s: an earlier run of this job may still be at work"
        )
        until = time.monotonic() + _WATCH_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            beat = self._read(number)
            if beat.get("released"):
                return
            if beat != first:
                owner = json.loads(self.output.read(_key(number, "json")))
                raise JobTakenError(
                    f"{self.output.uri}: process {owner['pid']} on {owner['host']} is at work on "
                    "this job; leaving it to it"
                )

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(self.output.read(_key(number, "beat")))
        except MissingKeyError:
            return {}

    def _write_beat(self, words: dict[str, Any]) -> None:
        self.output.write(_key(self._number, "beat"), json.dumps(words).encode())

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(_BEAT_S if count else 0):
            count += 1
            with contextlib.suppress(StorageError):  # the work itself stops where the store fails
                self._write_beat({"beat": count})
                self.superseded = self.output.exists(_key(self._number + 1, "json"))
            if self.superseded:
                return


def earlier_runs(output: Store) -> list[dict[str, Any]]:
    """The records that drivers which took photos in left when they ended, in order."""
    beats = sorted(e.key for e in output.walk(_FOLDER + "/") if e.key.endswith(".beat"))
    records = [json.loads(output.read(key)) for key in beats]
    return [record for record in records if record.get("photos")]


def _key(number: int, kind: str) -> str:
    return f"{_FOLDER}/{number:05d}.{kind}"


def _number(key: str) -> int:
    return int(key.rpartition("/")[2].partition(".")[0])
