"""Load on an HTTP endpoint: clients that wait for each answer, or arrivals at an even rate."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Request = dict[str, Any]
"""Keyword arguments of httpx' `post`."""


@dataclass
class Answers:
    """The replies to a load."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of each request that was answered 200."""
    refused_seconds: list[float] = field(default_factory=list)
    """Seconds of each request that was answered 429 or 503."""
    statuses: Counter[int] = field(default_factory=Counter)
    """The last status of each request; 0 for a broken connection."""
    wall_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Requests a second that were answered 200."""
        return len(self.seconds) / self.wall_s

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the 200s was answered."""
        return percentile(self.seconds, share)

    def figures(self) -> dict[str, float]:
        """Throughput, p50 and p99."""
        return {
            "per_s": self.per_s,
            "p50_ms": 1000 * self.percentile(0.5),
            "p99_ms": 1000 * self.percentile(0.99),
        }


def percentile(seconds: Sequence[float], share: float) -> float:
    """The percentile of a share in [0, 1], by linear interpolation; NaN without values."""
    if len(seconds) < 2:
        return seconds[0] if seconds else float("nan")
    return statistics.quantiles(seconds, n=1000, method="inclusive")[round(share * 1000) - 1]


async def clients(
    url: str, count: int, seconds: float, requests: Callable[[int], Request], retries: int = 0
) -> Answers:
    """`count` clients, each of which sends its next request once the last one was answered.

    retries: how often a request that was refused, or whose connection broke, is sent again, after
    Retry-After.
    """
    answers, started = Answers(), time.perf_counter()
    numbers = iter(range(10**9))

    async def one(client: httpx.AsyncClient) -> None:
        while time.perf_counter() - started < seconds:
            await _send(client, url, requests(next(numbers)), answers, retries)

    async with _client() as client:
        await asyncio.gather(*(one(client) for _ in range(count)))
    answers.wall_s = time.perf_counter() - started
    return answers


async def arrivals(
    url: str, per_s: float, seconds: float, requests: Callable[[int], Request]
) -> Answers:
    """Requests at an even rate, whether or not earlier ones were answered."""
    answers, started = Answers(), time.perf_counter()
    sent: list[asyncio.Task[None]] = []
    async with _client() as client:
        for number in range(round(per_s * seconds)):
            await asyncio.sleep(max(0.0, number / per_s - (time.perf_counter() - started)))
            sending = _send(client, url, requests(number), answers, 0)
            sent.append(asyncio.ensure_future(sending))
        await asyncio.gather(*sent)
    answers.wall_s = time.perf_counter() - started
    return answers


def _client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx.AsyncClient(timeout=120, limits=limits, trust_env=False)


async def _send(
    client: httpx.AsyncClient, url: str, request: Request, answers: Answers, retries: int
) -> None:
    for attempt in range(retries + 1):
        began = time.perf_counter()
        try:
            reply = await client.post(url, **request)
            status, again_s = reply.status_code, float(reply.headers.get("retry-after", 1))
        except httpx.TransportError:
            status, again_s = 0, 1.0
        took = time.perf_counter() - began
        if status == 200:
            answers.seconds.append(took)
            break
        if status in (429, 503):
            answers.refused_seconds.append(took)
        if attempt < retries:
            await asyncio.sleep(again_s)
    answers.statuses[status] += 1
