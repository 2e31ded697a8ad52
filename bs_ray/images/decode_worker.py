"""A process of the decode pool: photos come in on a socket, rows go out.

It enforces its limits itself: the kernel ends it when a photo takes too long, whatever it is doing
and whether or not the pool still lives, and it exits when a photo wants too much memory.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from io import BufferedWriter
from pathlib import Path

from PIL import Image

from bs_ray.images.decode import decode
from bs_ray.images.messages import receive, send

TOO_SLOW = -signal.SIGALRM
"""Exit code of a decoder that ran out of time, as `subprocess` gives it."""
TOO_LARGE = 77
"""Exit code of a decoder that ran out of memory."""

# Rows of small photos are sent together, those of large photos at once: a process that keeps pixels
# needs new memory for each photo, which costs more than sending them.
_BUFFER_BYTES = 128 << 10


def main(seconds: float, memory_mb: int) -> None:
    """Answer (photos, options of `decode`) with the photos' rows, until the pool hangs up."""
    with socket.socket(fileno=0) as line:
        requests = line.makefile("rb")
        replies = BufferedWriter(line.makefile("wb", buffering=0), _BUFFER_BYTES)
        _limit(memory_mb)
        send(replies, "ready")
        while True:
            replies.flush()
            try:
                photos, options = receive(requests)
            except EOFError:
                return
            for key, data in photos:
                signal.setitimer(signal.ITIMER_REAL, seconds)  # unhandled, it ends this process
                row = decode(key, data, **options)
                signal.setitimer(signal.ITIMER_REAL, 0)
                send(replies, row)


def _limit(memory_mb: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process of the pool
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    Image.init()  # loads the decoders, whose memory would count as the first photo's
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # libtiff prints damage without naming the photo; the rows name it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def run(seconds: float, memory_mb: int) -> None:
    """`main`, as a process."""
    try:
        main(seconds, memory_mb)
    except MemoryError:
        sys.exit(TOO_LARGE)
