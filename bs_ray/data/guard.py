"""Decoding behind a wall: in processes of their own, with limits on time and memory.

A picture can make a decoder loop, ask for all memory, or crash the process. Here that costs the
picture a line in quarantine, and a small process its life; the worker goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError
from functools import lru_cache
from typing import Any

from pebble import ProcessExpired, ProcessPool

from bs_ray.data import DecodedRow, QuarantinedRow, quarantined
from bs_ray.data.decode import decode

_PROCESSES = 2
_ORPHAN_CHECK_S = 1.0

Decoded = list[DecodedRow | QuarantinedRow]


class Guard:
    """Decodes lists of photos; what breaks the decoder is quarantined by name.

    Start one for each process and keep it: `guard_of`.
    """

    def __init__(self, seconds: float, memory_mb: int):
        """seconds, memory_mb: what one photo may take."""
        self.seconds, self.memory_mb = seconds, memory_mb
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bs_ray.data.decode"])
        self._pool = ProcessPool(
            _PROCESSES, initializer=_limit, initargs=(os.getpid(), memory_mb), context=context
        )

    def close(self) -> None:
        """Stop the processes."""
        self._pool.stop()
        self._pool.join()

    def decode(self, photos: Sequence[tuple[str, bytes]], **options: Any) -> Decoded:
        """(key, file) of every photo -> its row, in order; `options` as `decode` takes them."""
        chunks = [list(photos[first::_PROCESSES]) for first in range(_PROCESSES)]
        futures = [self._schedule(chunk, options) for chunk in chunks]
        rows: Decoded = [quarantined(key, "decode", "") for key, _ in photos]
        for first, (chunk, future) in enumerate(zip(chunks, futures, strict=True)):
            try:
                rows[first::_PROCESSES] = future.result()
            except (TimeoutError, ProcessExpired, MemoryError):  # one of them: which?
                rows[first::_PROCESSES] = [self._alone(photo, options) for photo in chunk]
        return rows

    def _schedule(self, photos: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> Any:
        return self._pool.schedule(_decode_all, args=(photos, options), timeout=self.seconds)

    def _alone(
        self, photo: tuple[str, bytes], options: dict[str, Any]
    ) -> DecodedRow | QuarantinedRow:
        key = photo[0]
        try:
            return self._schedule([photo], options).result()[0]
        except TimeoutError:
            reason = f"too slow: it did not decode in {self.seconds:g} s (decode_s)"
        except ProcessExpired:
            reason = "fatal: it crashed the decoder"
        except MemoryError:
            reason = f"too large: it needs more than {self.memory_mb} MB to decode (decode_mb)"
        return quarantined(key, "decode", reason)


@lru_cache(maxsize=1)
def guard_of(seconds: float, memory_mb: int) -> Guard:
    """This process' Guard, started on first use."""
    return Guard(seconds, memory_mb)


def _decode_all(photos: Sequence[tuple[str, bytes]], options: dict[str, Any]) -> Decoded:
    return [decode(key, data, **options) for key, data in photos]


def _limit(parent: int, memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """A worker that is killed cannot stop its decoders, and one of them may hang."""
    while os.path.exists(f"/proc/{parent}"):
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)
