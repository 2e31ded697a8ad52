"""Photos by URL, from hosts that the operator lists, and never from inside the network.

A name becomes an address in one place, `_PublicNetwork`: it looks the name up once, refuses it
unless every address is public, and connects to one of those. There is no second look-up that could
give another answer (DNS rebinding), no redirect, no proxy and no decompression.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore
import httpx

from bs_ray.serve.http.problems import Problem

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> its addresses. Raises OSError where there are none."""

_MAX_URL = 2048
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "bs_ray"}


async def fetch_image(
    url: str,
    allowed_hosts: Sequence[str],
    max_bytes: int,
    timeout_s: float = 10,
    *,
    resolve: Resolver | None = None,
    backend: httpcore.AsyncNetworkBackend | None = None,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The file at `url`. Raises Problem 422 url-not-allowed or url-unreachable, 413 too-large.

    allowed_hosts: see `HostRule`; without any, no URL is fetched. timeout_s: for the whole fetch.
    resolve, backend, tls: the machine's own where left out. `backend` gets addresses that were
    found to be public, never a name.
    """
    place = _allowed(url, [HostRule.parse(text) for text in allowed_hosts])
    public = _PublicNetwork(resolve or _resolve, backend or httpcore.AnyIOBackend())
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore.AsyncConnectionPool(tls or _tls(), network_backend=public) as pool,
            pool.stream(
                "GET",
                _target(place),
                headers=_headers(place),
                extensions={
                    "timeout": {"connect": timeout_s / 3}
                },  # leaves time for a second address
            ) as reply,
        ):
            return await _body(reply, max_bytes)
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError):
        # The cause is left out, since it would reveal addresses and open ports behind the name.
        raise _unreachable(f"no answer from its host in time ({timeout_s:g} s)") from None


# --- which URLs -------------------------------------------------------------------------------
_RULE = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|(\*\.)?[a-z0-9]([a-z0-9_.-]*[a-z0-9])?)(:(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True)
class HostRule:
    """`photos.example.com`, or `*.example.com` for all names below it (not for itself).

    `:8443` allows that port alone; without a port the default ports of http and https are allowed.
    An IP address must be listed as such, and must be public as well.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """The rule that a text stands for. Raises ValueError."""
        match = _RULE.fullmatch(text.lower())
        if not match:
            raise ValueError(
                f"got allowed host {text!r}; expected a name without http://, such as "
                "photos.example.com, *.example.com or photos.example.com:8443"
            )
        return cls(match["host"].strip("[]"), int(match["port"]) if match["port"] else None)

    def allows(self, host: str, port: int, default_port: int) -> bool:
        """Whether a URL's host and port match; both in their plain form."""
        if port != (default_port if self.port is None else self.port):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and not _is_address(host)
        return host == self.host


def _allowed(url: str, rules: Iterable[HostRule]) -> httpx.URL:
    """The URL in parts. Raises Problem 422 unless a rule allows it."""
    rules = list(rules)
    if not rules:
        raise _refused("this server fetches none; send the photo itself")
    if len(url) > _MAX_URL:
        raise _refused(f"got {len(url)} characters; expected at most {_MAX_URL}")
    try:
        place = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise _refused("got text that is no URL; expected https://host/path") from None
    default_port = _PORTS.get(place.scheme)
    if default_port is None:
        raise _refused("expected http:// or https://")
    if place.userinfo:
        raise _refused("got a user or password in it; expected none")
    host, port = _plain(place), default_port if place.port is None else place.port
    if not any(rule.allows(host, port, default_port) for rule in rules):
        raise _refused("expected a host (and port) that this server allows; send the photo itself")
    return place


def _plain(place: httpx.URL) -> str:
    """The host as the connection names it: lower case, ASCII, without the root's dot."""
    return place.raw_host.decode("ascii").lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# --- which addresses --------------------------------------------------------------------------
_NAT64 = ip_network("64:ff9b::/96")
_UNICAST = ip_network("2000::/3")
_SPECIAL = [
    *map(
        ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
    ),  # tunnels among them
    *map(ip_network, ("192.0.0.0/24", "192.88.99.0/24")),
    ip_network("168.63.129.16/32"),  # services of a cloud, whose address looks public
]


def is_public(address: str) -> bool:
    """Whether an address, and the one that it may stand for, belongs to the public internet."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:  # an IPv4 host as seen from a network with IPv6 alone
            return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _UNICAST:  # mapped and compatible IPv4, local, multicast, unassigned
            return False
    special = any(ip.version == network.version and ip in network for network in _SPECIAL)
    return ip.is_global and not ip.is_multicast and not special


class _PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to names all of whose addresses are public. Raises Problem 422 for others."""

    def __init__(self, resolve: Resolver, backend: httpcore.AsyncNetworkBackend):
        self._resolve, self._backend = resolve, backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = [host] if _is_address(host) else await self._resolve(host, port)
        # A name used for rebinding has a private address among public ones.
        if not all(is_public(address) for address in addresses):
            raise _refused("its host has an address that is not public")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):  # such as no route over IPv6
                continue
        raise httpcore.ConnectError("no address answers")


async def _resolve(host: str, port: int) -> list[str]:
    """The addresses that the system resolves a name to, the best one first."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of more than 63 letters
        raise OSError("no such name") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


# --- the request ------------------------------------------------------------------------------
@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _target(place: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=place.raw_scheme,
        host=_plain(place).encode("ascii"),
        port=place.port,
        target=place.raw_path,
    )


def _headers(place: httpx.URL) -> list[tuple[str | bytes, str | bytes]]:
    return [("Host", place.netloc), *_HEADERS.items()]


async def _body(reply: httpcore.Response, max_bytes: int) -> bytes:
    """The body of a 200. Reads no further than the limit."""
    if reply.status != 200:
        raise _unreachable(f"its host answered {reply.status}, expected 200 (no redirect)")
    headers = {name.lower(): value for name, value in reply.headers}
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise _unreachable("its host compressed the file, though asked not to")
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in reply.aiter_stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


# --- problems ---------------------------------------------------------------------------------
def _refused(detail: str) -> Problem:
    return Problem(422, "url-not-allowed", f"image URL: {detail}")


def _unreachable(detail: str) -> Problem:
    return Problem(422, "url-unreachable", f"image URL: {detail}")


def _too_large(max_bytes: int) -> Problem:
    detail = f"image URL: got a larger file; expected at most {max_bytes} bytes"
    return Problem(413, "too-large", detail, max_bytes=max_bytes)
