"""How every verb gets to Ray: join a cluster that runs, or start a local Ray and stop it again."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WORKER_ENV = {
    # By default glibc returns large blocks to the kernel at once, and a training step on a CPU then
    # spends half its time in page faults.
    "MALLOC_MMAP_THRESHOLD_": str(2 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    # Several workers share the cores; one that wants more threads asks torch for them.
    "OMP_NUM_THREADS": "1",
}
_OBJECT_STORE_BYTES = 500 << 20
_NOISE = b"has constructor arguments in the object store and max_restarts > 0."
"""What Ray logs as an error for every pool of Ray Data's actors. The pool keeps these arguments."""


@contextmanager
def ray_session(num_cpus: int | None = None, address: str | None = None) -> Iterator[None]:
    """A Ray to use in the `with` block: the one already joined, else the cluster at `address`
    (default: $RAY_ADDRESS), else a local one with `num_cpus` logical CPUs (at least 4, or the
    cores).

    Only a Ray that was started or joined here is left again. Storage credentials are not passed on:
    workers have their node's environment, which for a local Ray is this process's. Raises
    RuntimeError where no Ray answers at the address, or none starts.
    """
    import ray
    import ray.data  # sets its own loggers up, which _quieten then changes

    _quieten()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with filtered_stderr():
        try:
            with _interrupts_wait():
                if address:
                    _join(address)
                else:
                    _start(max(4, os.cpu_count() or 4, num_cpus or 0))
            yield
        finally:
            ray.shutdown()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C until the block ends: a Ray interrupted while it starts leaves processes
    behind. A handler of SIGTERM that the caller has set is delayed alike, and kept: Ray sets its
    own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    callers = [signal.SIGINT]
    callers += [signal.SIGTERM] if callable(signal.getsignal(signal.SIGTERM)) else []
    before = {
        number: signal.signal(number, lambda number, _: held.append(number)) for number in callers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in held:
        signal.raise_signal(late)


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, **_OPTIONS)
    except (ConnectionError, ValueError) as error:
        raise RuntimeError(
            f"Ray: got no cluster at {address} ({error}); expected a running one. Start it, or "
            "unset RAY_ADDRESS to run on this machine"
        ) from error


def _start(num_cpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            **_OPTIONS,
        )
    except Exception as error:  # Ray's own type for a node that is not up within 30 s
        raise RuntimeError(
            f"Ray did not start on this machine ({error}); expected it within 30 s. Free some CPU "
            "and memory and try again, or set RAY_ADDRESS to a running cluster"
        ) from error


_OPTIONS = {"log_to_driver": False, "runtime_env": {"env_vars": WORKER_ENV}}


@contextmanager
def filtered_stderr() -> Iterator[None]:
    """Within, what is written to file descriptor 2 arrives there without the lines of `_NOISE`.

    Ray's C++ code writes them there itself, where no logger of Python can hold them back.
    """
    shown = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)
    copier = threading.Thread(target=_copy, args=(reader, shown), daemon=True)
    copier.start()
    try:
        yield
    finally:
        os.dup2(shown, 2)  # closes the pipe, unless a process that we started still has it
        copier.join(timeout=1)


def _copy(reader: int, shown: int) -> None:
    # Where the terminal has gone, the pipe closes: whoever writes then fails instead of waiting.
    with suppress(OSError), open(reader, "rb", 0) as source, open(shown, "wb", 0) as target:
        while some := source.read(1 << 16):
            target.write(b"".join(x for x in some.splitlines(keepends=True) if _NOISE not in x))


def _quieten() -> None:
    """Keep Ray's plans and progress off the console; they are in its log files."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
