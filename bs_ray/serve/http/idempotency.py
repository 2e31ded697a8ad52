"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a repeat is not computed again.

A client that has lost its reply sends the request again, with the same key, and gets that reply.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bs_ray.serve.http.problems import Problem

Reply = TypeVar("Reply")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass
class _Run(Generic[Reply]):
    """One request, however often it is sent."""

    digest: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    """How many tasks compute it or wait for it."""
    replies: list[Reply] = field(default_factory=list)
    """The reply, once there is one."""
    finished_s: float = 0.0
    size: int = 0
    """Bytes of the reply."""


class Replies(Generic[Reply]):
    """Finished replies of the last minutes, by owner and key. For one event loop; processes do not
    share them.

    Errors are not remembered: a request that failed may be sent again under the same key.
    """

    def __init__(
        self,
        *,
        size_of: Callable[[Reply], int],
        ttl_s: float = 600,
        max_entries: int = 1_000,
        max_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ):
        """size_of: a reply's bytes. ttl_s: how long it is remembered. clock: in seconds.

        Beyond max_entries or max_bytes the oldest replies are forgotten first. A reply larger than
        max_bytes goes only to those who wait for it.
        """
        self._size_of, self._clock = size_of, clock
        self._ttl_s, self._max_entries, self._max_bytes = ttl_s, max_entries, max_bytes
        self._running: dict[tuple[str, str], _Run[Reply]] = {}
        self._finished: OrderedDict[tuple[str, str], _Run[Reply]] = OrderedDict()  # oldest first
        self._bytes = 0

    async def once(
        self, owner: str, key: str, digest: str, compute: Callable[[], Awaitable[Reply]]
    ) -> tuple[Reply, bool]:
        """The reply of `compute`, and whether it was computed for an earlier request.

        owner: an API key's id, since clients choose their keys without knowing each other's.
        digest: of the parsed request; of the raw form it would change, as a form sent again has
        another boundary. A repeat waits for the request that is being computed. Where that one
        fails or is cancelled, it alone gets the error, and the next repeat computes.

        Raises Problem 400 for a malformed key, and 422 for one that stands for another request.
        """
        self._forget()
        place = (owner, _checked(key))
        run = self._finished.get(place) or self._running.setdefault(place, _Run(digest))
        if run.digest != digest:
            raise Problem(
                422,
                "idempotency-key-reused",
                "Idempotency-Key: got one that stands for another request; expected a new key",
            )
        run.users += 1
        try:
            async with run.turn:
                if run.replies:
                    return run.replies[0], True
                reply = await compute()
                self._finish(place, run, reply)
                return reply, False
        finally:
            run.users -= 1
            if not run.users and self._running.get(place) is run:
                del self._running[place]

    def _finish(self, place: tuple[str, str], run: _Run[Reply], reply: Reply) -> None:
        run.replies.append(reply)
        run.size, run.finished_s = self._size_of(reply), self._clock()
        if run.size <= self._max_bytes:
            self._finished[place] = self._running.pop(place)
            self._bytes += run.size
            self._forget()

    def _forget(self) -> None:
        """Drop replies that are too old or too many."""
        while self._finished:
            place, oldest = next(iter(self._finished.items()))
            late = self._clock() - oldest.finished_s >= self._ttl_s
            full = len(self._finished) > self._max_entries or self._bytes > self._max_bytes
            if not (late or full):
                return
            del self._finished[place]
            self._bytes -= oldest.size


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise Problem(
            400,
            "malformed-idempotency-key",
            f"Idempotency-Key: got {len(key)} characters; expected 1 to 255 of visible ASCII, such "
            "as a UUID",
        )
    return key
