"""A proxy in front of the store that damages requests, and can stop the world at one of them.

    with Proxy(store.endpoint_url, seed=3, rates={"flip_reply": 0.2}) as proxy:
        env["AWS_ENDPOINT_URL"] = proxy.url

Which requests are hit follows from the seed, the request and how often it was seen before, so it
does not depend on the timing of threads. The Host header goes through as it came: it is signed,
and the store does not mind another port in it.
"""

import fnmatch
import hashlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

FAULTS = (
    "delay",  # the answer comes late
    "hang",  # no answer; in the end the connection is closed
    "reset",  # RST before the request reaches the store
    "slow_down",  # 503, as a busy S3 says it
    "cut_request",  # the store gets half of the body, the client an RST
    "lose_reply",  # the store has done it; the client gets an RST
    "cut_reply",  # half of the body, then an orderly end
    "reset_reply",  # half of the body, then an RST
    "flip_request",  # one bit of an upload is another
    "flip_reply",  # one bit of a download is another
)
_NEEDS_UPLOAD = {"cut_request", "flip_request"}
_NEEDS_DOWNLOAD = {"cut_reply", "reset_reply", "flip_reply"}
_DELAY_S = 0.5
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends an RST
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Step:
    """The nth request of a kind, before it reaches the store or after its answer is known."""

    when: str
    """`before` or `after`."""
    method: str
    pattern: str
    """Of the key, as fnmatch has it."""
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.when} {self.method} {self.pattern} (number {self.nth})"


@dataclass(frozen=True)
class Event:
    """One request as it went."""

    method: str
    key: str
    """The path below the bucket; "" for a listing."""
    upload: str
    """sha256 of the body as the client sent it."""
    fault: str
    """One of FAULTS, "stopped" at the proxy's step, or ""."""
    status: int
    """Of the store's answer; 0 where it was not asked or did not answer."""


class Proxy:
    """Forwards to `upstream`; enters to its own `url` on 127.0.0.1.

    rates: fault -> share of the requests that it hits. hang_s: how long a hang holds a client.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        rates: Mapping[str, float] | None = None,
        hang_s: float = 20.0,
    ) -> None:
        self.upstream, self.hang_s = urlsplit(upstream).netloc, hang_s
        self.closing = threading.Event()
        self.reached, self.go = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.begin(seed, rates or {})
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.arm(None)
        self._server.shutdown()
        self._server.server_close()

    def begin(self, seed: int, rates: Mapping[str, float]) -> None:
        """From now on, be as a new proxy with this seed and these rates."""
        self.seed, self.rates = seed, dict(rates)
        self.events: list[Event] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self.arm(None)

    def arm(self, step: Step | None) -> None:
        """From now on, `reached` is set at this step, and its request waits for `go`.

        It is never answered; requests that waited at an earlier step are let go.
        """
        self.go.set()
        self.reached, self.go = threading.Event(), threading.Event()
        self.step: Step | None = step
        self._steps = 0

    def draw(self, method: str, key: str, size: int) -> tuple[str, random.Random]:
        """The fault of the next such request ("" as a rule), and the chance for its details."""
        key = re.sub("[0-9a-f]{8,}", "*", key)  # of a token: other digits in every run
        with self._lock:
            self._seen[method, key] += 1
            seen = self._seen[method, key]
        rng = random.Random(f"{self.seed} {method} {key} {seen}")
        chance = rng.random()
        for fault, rate in self.rates.items():
            if chance < rate:
                return (fault if _applies(fault, method, key, size) else ""), rng
            chance -= rate
        return "", rng

    def stops(self, when: str, method: str, key: str) -> bool:
        """Whether this is the step; if so, returns when the test lets go."""
        step, reached, go = self.step, self.reached, self.go
        if step is None or (step.when, step.method) != (when, method):
            return False
        if not fnmatch.fnmatchcase(key, step.pattern):
            return False
        with self._lock:
            self._steps += 1
            if self._steps != step.nth:
                return False
        reached.set()
        go.wait()
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients are killed and hang up all the time here."""


def _applies(fault: str, method: str, key: str, size: int) -> bool:
    """Whether this fault can befall such a request.

    A listing is spared flips: its answer carries no checksum in S3, so nobody could notice.
    """
    if fault in _NEEDS_UPLOAD:
        return method == "PUT" and size > 0
    if fault in _NEEDS_DOWNLOAD:
        return method == "GET" and (fault != "flip_reply" or key != "")
    return True


Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""


def _has_object(answer: Answer) -> bool:
    """Whether there is something to damage; of an error's text nothing depends on its letters."""
    status, _, data = answer
    return status < 300 and bool(data)


class _HangUp(Exception):
    """End the connection with an RST."""


class _Stopped(_HangUp):
    """This request was the step."""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection. Subclasses say whose."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"
    rbufsize = 1 << 16

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # /bucket/key?query
        key = unquote(urlsplit(self.path).path).partition("/")[2].partition("/")[2]
        fault, rng = self.proxy.draw(self.command, key, len(body))
        self.status, answer = 0, None
        try:
            answer = self.answer(body, key, fault, rng)
        except (_HangUp, OSError, http.client.HTTPException) as end:  # or the store is down
            fault = "stopped" if isinstance(end, _Stopped) else fault
        if answer and fault in _NEEDS_DOWNLOAD and not _has_object(answer):
            fault = ""
        digest = hashlib.sha256(body).hexdigest()
        # Before the answer, so that what a client does next comes later in the list.
        self.proxy.events.append(Event(self.command, key, digest, fault, self.status))
        if answer:
            self.reply(*answer, short=fault in ("cut_reply", "reset_reply"))
        if not answer or fault == "reset_reply":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def answer(self, body: bytes, key: str, fault: str, rng: random.Random) -> Answer:
        if self.proxy.stops("before", self.command, key):
            raise _Stopped
        if fault == "delay":
            time.sleep(_DELAY_S)
        elif fault == "hang":
            self.proxy.closing.wait(self.proxy.hang_s)
            raise _HangUp
        elif fault == "reset":
            raise _HangUp
        elif fault == "slow_down":
            return 503, [("Content-Type", "application/xml")], _SLOW_DOWN
        elif fault == "flip_request":
            body = _flipped(body, rng)
        status, headers, data = self.ask(body, cut=fault == "cut_request")
        if self.proxy.stops("after", self.command, key):
            raise _Stopped
        if fault == "lose_reply":
            raise _HangUp
        answer = status, headers, data
        if fault == "flip_reply" and _has_object(answer):
            return status, headers, _flipped(data, rng)
        return answer

    def ask(self, body: bytes, cut: bool) -> Answer:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body[: len(body) // 2] if cut else body)
            if cut:
                raise _HangUp
            reply = upstream.getresponse()
            self.status = reply.status
            return reply.status, reply.getheaders(), reply.read()
        finally:
            upstream.close()

    def reply(
        self, status: int, headers: list[tuple[str, str]], data: bytes, short: bool = False
    ) -> None:
        """short: announce all of it, send half and end the connection."""
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        hop = {"transfer-encoding", "connection"}
        if self.command != "HEAD":  # whose length is that of a body which does not come
            hop.add("content-length")
            lines.append(f"Content-Length: {len(data)}")
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in hop]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self.connection.sendall(data[: len(data) // 2] if short else data)
        self.close_connection = self.close_connection or short

    def log_message(self, *_: object) -> None:
        pass


def _flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)
