"""What serving counts and measures, and one page of it for the whole cluster.

Ray exports these from each node, with `ray_` before each name and `_total` behind a counter's. It
reports every 10 s. Of a histogram it reports only how many values fell between two boundaries:
quantiles are as exact as the boundaries are close, and `_sum` is computed from the middles of the
buckets.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable
from threading import Thread
from typing import Literal

import aiohttp
import ray
from ray.serve.metrics import Counter, Gauge, Histogram

Outcome = Literal["done", "failed", "cancelled", "refused"]
Origin = Literal["memory", "registry", "failed"]
"""Where a slider came from; `failed` where the registry did not have it or did not answer."""

# Boundaries between whole numbers put each number in the middle of a bucket, so that the mean
# number of edits in a step is exact up to 16.
STEP_ROWS = [0.5 + rows for rows in (*range(17), 24, 32, 48, 64)]
STEP_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.175, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30]
QUEUE_SECONDS = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 60, 120, 300]
REQUEST_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300]

_GAUGES_EVERY_S = 5.0
"""Ray forgets a gauge that is not set for two of its reports, which is 20 s."""
_PREFIX = "ray_bs_ray_"
_NODE_TIMEOUT_S = 2.0
_log = logging.getLogger(__name__)


class ReplicaMetrics:
    """What a replica reports. In a Serve replica each metric carries the replica's name."""

    def __init__(self) -> None:
        self._edits = Counter("bs_ray_edits", "Edits that ended, by outcome.", ("outcome",))
        self._queue = Histogram(
            "bs_ray_queue_seconds", "Time an edit waited for its first step.", QUEUE_SECONDS
        )
        self._rows = Histogram(
            "bs_ray_step_rows", "Edits in one forward pass: how full the batch was.", STEP_ROWS
        )
        self._seconds = Histogram(
            "bs_ray_step_seconds", "Time of one forward pass and its step.", STEP_SECONDS
        )
        self._running = Gauge("bs_ray_running_edits", "Edits that take part in steps now.")
        self._waiting = Gauge("bs_ray_waiting_edits", "Edits that wait for a place in the batch.")
        self._uses = Counter(
            "bs_ray_slider_uses", "Edits that used a slider, by its name@version.", ("slider",)
        )
        self._loads = Counter(
            "bs_ray_slider_loads",
            "Sliders asked for, by where they came from: memory (a hit of the cache) or registry "
            "(a miss), or failed.",
            ("from",),
        )
        self._resident = Gauge("bs_ray_sliders_resident", "Sliders held in memory.")
        # They are set again and again, so that an idle or a hung replica is still shown.
        self._counts = {self._running: 0, self._waiting: 0, self._resident: 0}
        Thread(target=_keep_gauges, args=[weakref.ref(self)], daemon=True).start()

    def stepped(self, rows: int, seconds: float) -> None:
        """A forward pass over `rows` edits took `seconds`."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)

    def queued(self, seconds: float) -> None:
        """An edit begins its first step after it has waited for `seconds`."""
        self._queue.observe(seconds)

    def finished(self, outcome: Outcome) -> None:
        """An edit has ended, or was refused."""
        self._edits.inc(tags={"outcome": outcome})

    def occupancy(self, running: int, waiting: int) -> None:
        """How many edits run and wait now."""
        self._set(self._running, running)
        self._set(self._waiting, waiting)

    def slider_used(self, reference: str) -> None:
        """An edit uses the slider `name@version`."""
        self._uses.inc(tags={"slider": reference})

    def slider_loaded(self, origin: Origin) -> None:
        """A slider was asked for."""
        self._loads.inc(tags={"from": origin})

    def resident(self, count: int) -> None:
        """How many sliders are in memory now."""
        self._set(self._resident, count)

    def _set(self, gauge: Gauge, count: int) -> None:
        self._counts[gauge] = count
        gauge.set(count)


def _keep_gauges(of: weakref.ref[ReplicaMetrics]) -> None:
    """Set the gauges to their values again, for as long as the metrics exist."""
    while (metrics := of()) is not None:
        for gauge, count in metrics._counts.items():
            gauge.set(count)
        del metrics
        time.sleep(_GAUGES_EVERY_S)


class IngressMetrics:
    """What the HTTP side reports."""

    def __init__(self) -> None:
        self._requests = Counter(
            "bs_ray_requests",
            "Requests answered, by operation (edits or generations) and HTTP status.",
            ("operation", "status"),
        )
        self._seconds = Histogram(
            "bs_ray_request_seconds",
            "Time from a request to the end of its answer.",
            REQUEST_SECONDS,
            ("operation",),
        )
        self._limited = Counter(
            "bs_ray_rate_limited", "Requests refused by a key's rate limit.", ("key",)
        )

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """A request for `edits` or `generations` was answered `seconds` after its arrival."""
        self._requests.inc(tags={"operation": operation, "status": str(status)})
        self._seconds.observe(seconds, tags={"operation": operation})

    def rate_limited(self, key: str) -> None:
        """A request was refused. key: the key's id, never the key itself."""
        self._limited.inc(tags={"key": key})


# --- one page for the cluster -----------------------------------------------------------------
async def exposition() -> str:
    """The bs_ray metrics of every node that is alive, in Prometheus' text format.

    A node that does not answer within 2 s is left out, which `ray_bs_ray_node_up` shows.
    """
    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    addresses = [_address(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes]
    timeout = aiohttp.ClientTimeout(total=_NODE_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        pages = await asyncio.gather(*(_page(session, address) for address in addresses))
    return merged([_up(addresses, pages), *(page for page in pages if page is not None)])


def merged(pages: Iterable[str]) -> str:
    """The bs_ray families of several pages as one page: each family has its head once, then the
    samples of all pages."""
    heads: dict[str, dict[str, str]] = defaultdict(dict)  # family -> HELP, TYPE -> line
    samples: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        family = ""
        # splitlines would also split at characters that a label may contain.
        for line in page.split("\n"):
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, family, *_ = line.split(" ", 3)
                if family.startswith(_PREFIX):
                    heads[family].setdefault(kind, line)
            elif line.startswith(_PREFIX):
                samples[family].append(line)
    lines = [line for family in heads for line in (*heads[family].values(), *samples[family])]
    return "".join(f"{line}\n" for line in lines)


async def _page(session: aiohttp.ClientSession, address: str) -> str | None:
    """What a node exports; None where it does not answer. The port needs no token, not even in a
    cluster that has one."""
    try:
        async with session.get(f"http://{address}/metrics", raise_for_status=True) as reply:
            return await reply.text()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        _log.warning("metrics of node %s: %s", address, error or "no answer in time")
        return None


def _up(addresses: list[str], pages: list[str | None]) -> str:
    name = f"{_PREFIX}node_up"
    lines = [
        f"# HELP {name} Whether a node's metrics are part of this page.",
        f"# TYPE {name} gauge",
        *(
            f'{name}{{node="{address}"}} {int(page is not None)}'
            for address, page in zip(addresses, pages, strict=True)
        ),
    ]
    return "\n".join(lines)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
