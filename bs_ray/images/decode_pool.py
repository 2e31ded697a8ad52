"""Decode untrusted files in separate processes, with limits on time and memory.

A picture can make a decoder loop, ask for all memory, or crash the process. Here the picture ends
in quarantine and a small process ends with it, while the worker goes on.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import Any, BinaryIO

from bs_ray.images.decode_worker import TOO_LARGE, TOO_SLOW
from bs_ray.images.messages import receive, send
from bs_ray.images.rows import DecodedRow, QuarantinedRow, quarantined

_PROCESSES = 2
# Small photos share a trip to a decoder and back; large ones travel alone.
_TRIP_PHOTOS = 16
_TRIP_BYTES = 1 << 20

_ENVIRONMENT = {
    # On a large machine numpy's threads would take much of the address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # By default glibc returns the memory of each photo of some megapixels to the kernel, and a
    # decoder spends more time on getting it back than on decoding.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}

# A Ray worker may have paths of its own. They come last, and the working folder does not come at
# all (-P): a file `inspect.py` in the user's folder is not for a decoder to run.
_RUN = """
import sys
sys.path += [path for path in sys.argv[4:] if path not in sys.path]
from bs_ray.images.decode_worker import run
run(float(sys.argv[2]), int(sys.argv[3]))
"""
_SAID_BYTES = 2000

Photo = tuple[str, bytes]
"""Key and file."""
Decoded = list[DecodedRow | QuarantinedRow]


class DecodePool:
    """Decodes lists of photos; one that breaks its decoder is quarantined by name.

    A process should start one and keep it: `shared_decode_pool`.
    """

    def __init__(self, seconds: float, memory_mb: int):
        """seconds, memory_mb: what one photo may take.

        A photo that takes longer costs the time twice: once among others, once alone to find it.
        """
        self._threads = ThreadPoolExecutor(_PROCESSES, "decode-pool")
        self._decoders = [_Decoder(seconds, memory_mb) for _ in range(_PROCESSES)]
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)

    def close(self) -> None:
        """Stop the processes."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.stop()

    def decode(self, photos: Sequence[Photo], **options: Any) -> Decoded:
        """The row of every photo, in order. `options` are those of `decode`.

        Raises DecoderError where no decoder can be started.
        """

        def travel(trip: Sequence[Photo]) -> Decoded:
            decoder = self._idle.get()
            try:
                return decoder.decode(trip, options)
            finally:
                self._idle.put(decoder)

        return [row for rows in self._threads.map(travel, _trips(photos)) for row in rows]


@lru_cache(maxsize=1)
def shared_decode_pool(seconds: float, memory_mb: int) -> DecodePool:
    """This process's DecodePool, started on first use."""
    return DecodePool(seconds, memory_mb)


class DecoderError(RuntimeError):
    """A decoder does not start, which no photo can be the cause of."""


def _trips(photos: Sequence[Photo]) -> Iterator[list[Photo]]:
    trip: list[Photo] = []
    size = 0
    for photo in photos:
        if trip and (len(trip) == _TRIP_PHOTOS or size + len(photo[1]) > _TRIP_BYTES):
            yield trip
            trip, size = [], 0
        trip.append(photo)
        size += len(photo[1])
    if trip:
        yield trip


class _Decoder:
    """One decoder process, started when it is needed and again whenever it has ended."""

    def __init__(self, seconds: float, memory_mb: int):
        self._seconds, self._memory_mb = seconds, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: BinaryIO
        self._replies: BinaryIO

    def decode(self, photos: Sequence[Photo], options: dict[str, Any]) -> Decoded:
        """The row of each photo, in order."""
        rows = self._ask(photos, options)
        if isinstance(rows, int):  # it ended over one of them; try each alone to find which
            return [self._alone(photo, options) for photo in photos]
        return rows

    def _alone(self, photo: Photo, options: dict[str, Any]) -> DecodedRow | QuarantinedRow:
        while True:
            fresh = self._process is None
            answer = self._ask([photo], options)
            if not isinstance(answer, int):
                return answer[0]
            # An old decoder may crash because of an earlier photo, or run out of memory with age.
            # So a photo is blamed only where it ends a fresh decoder.
            if fresh or answer == TOO_SLOW:
                return quarantined(photo[0], "decode", self._reason(answer))

    def _ask(self, photos: Sequence[Photo], options: dict[str, Any]) -> Decoded | int:
        """The photos' rows, or the decoder's exit code where it ended over them."""
        if not self._process:
            self._start()
        try:
            send(self._requests, (photos, options))
            self._requests.flush()
            return [receive(self._replies) for _ in photos]
        except (EOFError, ConnectionError):
            return self._wait()
        except BaseException:
            self.stop()  # the reply to this request would be taken for that to the next one
            raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # The module's name is there for whoever looks at the list of processes.
        started = ["bs_ray.images.decode_worker", str(self._seconds), str(self._memory_mb)]
        command = [sys.executable, "-P", "-c", _RUN, *started, *filter(None, sys.path)]
        env = os.environ | _ENVIRONMENT
        with tempfile.TemporaryFile() as said:
            with ours, theirs:  # while we hold `theirs` open, no end of the process shows
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stderr=said, env=env
                )
                self._requests, self._replies = ours.makefile("wb"), ours.makefile("rb")
            try:
                receive(self._replies)
            except (EOFError, ConnectionError):
                code = self._wait()
                said.seek(0)
                last = said.read()[-_SAID_BYTES:].decode("utf-8", "replace").strip()
                raise DecoderError(
                    f"decoder: {sys.executable} got exit code {code}; expected a process that "
                    f"decodes. It said: {last or 'nothing'}"
                ) from None

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.kill()
            self._wait()

    def _wait(self) -> int:
        assert self._process
        code = self._process.wait()
        self._process = None
        self._replies.close()
        with suppress(ConnectionError):  # raised for a request that the process did not take
            self._requests.close()
        return code

    def _reason(self, code: int) -> str:
        if code == TOO_SLOW:
            return f"too slow: it did not decode in {self._seconds:g} s (decode_s)"
        if code == TOO_LARGE:
            return f"too large: it needs more than {self._memory_mb} MB to decode (decode_mb)"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"fatal: it crashed the decoder ({how})"
