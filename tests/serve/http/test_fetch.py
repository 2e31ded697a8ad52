"""Photos by URL: what is refused, and real connections to a web server of this machine.

A server here has a private address, which is never fetched from. So where a connection is to
succeed the names resolve to public addresses, and `Detour` leads what would go there to the server.
"""

import asyncio
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import httpcore
import pytest

from bs_ray.serve.http.fetch import HostRule, fetch_image, is_public
from bs_ray.serve.http.problems import Problem

HOST = "photos.example.com"
ADDRESS = "93.184.216.34"
PHOTO = bytes(range(256)) * 4
LIMIT = 1024


def answer(body: bytes = PHOTO, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Source:
    """A web server that says the same to everyone, and notes what it was asked."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0, endless: bytes = b""):
        """pause_s: before each piece. endless: repeated after them until the client goes."""
        self.pieces, self.pause_s, self.endless = pieces, pause_s, endless
        self.requests: list[str] = []
        self.sent_bytes = 0

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """The port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            for piece in self.pieces:
                await asyncio.sleep(self.pause_s)
                await self._send(writer, piece)
            while self.endless:
                await asyncio.sleep(self.pause_s)
                await self._send(writer, self.endless)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        writer.write(piece)
        await writer.drain()
        self.sent_bytes += len(piece)


class Detour(httpcore.AsyncNetworkBackend):
    """The real connector, led to this machine; notes where it was told to go."""

    def __init__(self, port: int, dead: Iterable[str] = ()):
        """dead: addresses where nobody answers."""
        self.port, self.dead = port, set(dead)
        self.asked: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any) -> httpcore.AsyncNetworkStream:
        self.asked.append((host, port))
        target = _closed_port() if host in self.dead else self.port
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", target, *rest)


def _closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Names:
    """Answers with each of its answers once, then with the last."""

    def __init__(self, *answers: Sequence[str], pause_s: float = 0.0):
        self.answers, self.pause_s = list(answers), pause_s
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        await asyncio.sleep(self.pause_s)
        return list(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


class Fetch:
    """One fetch from a source, and what became of it."""

    def __init__(
        self,
        source: Source,
        url: str = f"http://{HOST}/a%20b?c=d",
        *,
        hosts: Sequence[str] = (HOST,),
        names: Names | None = None,
        dead: Iterable[str] = (),
        timeout_s: float = 20,
        server_tls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        self.names = names or Names([ADDRESS])
        self.data: bytes | None = None
        self.problem: Problem | None = None
        asyncio.run(self._run(source, url, hosts, dead, timeout_s, server_tls, tls))

    async def _run(self, source, url, hosts, dead, timeout_s, server_tls, tls) -> None:
        async with source.serving(server_tls) as port:
            self.detour, start_s = Detour(port, dead), time.monotonic()
            try:
                self.data = await fetch_image(
                    url,
                    hosts,
                    LIMIT,
                    timeout_s,
                    resolve=self.names,
                    backend=self.detour,
                    tls=tls,
                )
            except Problem as problem:
                self.problem = problem
            self.seconds = time.monotonic() - start_s

    def refused(self, kind: str, status: int = 422) -> str:
        """The problem's detail."""
        assert self.problem is not None, f"got {self.data!r}"
        assert (self.problem.status, self.problem.kind) == (status, kind), self.problem.detail
        return self.problem.detail


def refused(url: str, *hosts: str) -> str:
    """The real thing, with the machine's own resolver: the detail of its refusal."""
    with pytest.raises(Problem) as caught:
        asyncio.run(fetch_image(url, hosts, LIMIT, 5))
    assert (caught.value.status, caught.value.kind) == (422, "url-not-allowed")
    return caught.value.detail


# --- which URLs -------------------------------------------------------------------------------
def test_off_without_hosts() -> None:
    assert "this server fetches none" in refused(f"https://{HOST}/x")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://photos.example.com/x", "expected http"),
        ("file:///etc/passwd", "expected http"),
        ("//photos.example.com/x", "expected http"),
        ("photos.example.com/x", "expected http"),
        ("", "expected http"),
        (" https://photos.example.com/", "expected http"),
        ("https://photos.example.com/\n", "no URL"),
        ("https://[photos.example.com]/", "no URL"),
        ("https://photos.example.com:99999999/", "a host"),
        ("https://photos.example.com:x/", "no URL"),
        ("https://" + "x" * 3000, "3008 characters"),
        ("https://me:secret@photos.example.com/x", "user or password"),
        ("https://me@photos.example.com/x", "user or password"),
        ("https://evil.example\\@photos.example.com/x", "user or password"),
        ("https://photos.example.com\\.evil.example/", "a host"),
        ("https://evil.example/photos.example.com", "a host"),
        ("https://evil.example#@photos.example.com/", "a host"),
        ("https://evil.example?@photos.example.com/", "a host"),
        ("https://photos.example.com.evil.example/x", "a host"),
        ("https://evilphotos.example.com/x", "a host"),
        ("https://example.com/x", "a host"),
        ("https://photos%2eexample.com/x", "a host"),
        ("https://photos.example.com:8443/x", "a host"),
        ("https://photos.example.com:80/x", "a host"),
        ("http://photos.example.com:443/x", "a host"),
        ("https://93.184.216.34/x", "a host"),
        ("https://0x5db8d822/x", "a host"),
        ("https://1572395042/x", "a host"),
        ("https://[2606:4700::1111]/x", "a host"),
        ("https://[::ffff:93.184.216.34]/x", "a host"),
    ],
)
def test_urls_that_are_refused_unseen(url: str, expected: str) -> None:
    source = Source(answer())
    fetch = Fetch(source, url)
    detail = fetch.refused("url-not-allowed")
    assert expected in detail or (expected == "a host" and "no URL" in detail), detail
    assert not fetch.names.asked and not fetch.detour.asked and not source.requests


def test_a_refusal_repeats_no_password() -> None:
    assert "secret" not in refused(f"https://me:secret@{HOST}/x", HOST)


@pytest.mark.parametrize(
    ("url", "rule", "allowed"),
    [
        ("http://PHOTOS.example.COM/x", "photos.example.com", True),
        ("http://photos.example.com./x", "photos.example.com", True),
        ("http://photos.example.com:80/x", "photos.example.com", True),
        ("http://photos.example.com:8080/x", "photos.example.com:8080", True),
        ("http://photos.example.com/x", "photos.example.com:8080", False),
        ("http://photos.example.com/x", "photos.example.com:80", True),
        ("http://photos.example.com/x", "Photos.Example.com", True),
        ("http://a.example.com/x", "*.example.com", True),
        ("http://a.b.example.com/x", "*.example.com", True),
        ("http://example.com/x", "*.example.com", False),
        ("http://badexample.com/x", "*.example.com", False),
        ("http://a.example.com:81/x", "*.example.com:81", True),
        ("http://a.example.com:81/x", "*.example.com", False),
        ("http://bücher.example/x", "xn--bcher-kva.example", True),
        ("http://93.184.216.34/x", "93.184.216.34", True),
        ("http://93.184.216.34/x", "*.34", False),
        ("http://[2606:4700::1111]/x", "[2606:4700::1111]", True),
        ("http://[2606:4700::1111]:81/x", "[2606:4700::1111]:81", True),
    ],
)
def test_rules(url: str, rule: str, allowed: bool) -> None:
    fetch = Fetch(Source(answer()), url, hosts=["other.example", rule])
    assert (fetch.data == PHOTO) is allowed
    if not allowed:
        fetch.refused("url-not-allowed")


@pytest.mark.parametrize(
    "rule", ["https://example.com", "*", "*example.com", "a.*.com", "", "a/b", "a:b", "a:", "::1"]
)
def test_what_is_no_rule(rule: str) -> None:
    with pytest.raises(ValueError, match=r"got allowed host .*; expected a name"):
        HostRule.parse(rule)


# --- which addresses --------------------------------------------------------------------------
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.251",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::127.0.0.1",
    "::93.184.216.34",
    "::ffff:127.0.0.1",
    "::ffff:93.184.216.34",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::10.0.0.1",
    "64:ff9b::224.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:5db8:d822::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = [ADDRESS, "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [ADDRESS, address], [address, ADDRESS]):
        source = Source(answer())
        fetch = Fetch(source, names=Names(addresses))
        assert address not in fetch.refused("url-not-allowed")
        assert not fetch.detour.asked and not source.requests


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    fetch = Fetch(Source(answer()), names=Names([address]))
    assert fetch.data == PHOTO and fetch.detour.asked == [(address, 80)]


def test_addresses_at_random() -> None:
    draw = random.Random(0)
    inside = [ip_network(text) for text in ("10.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4")]
    for _ in range(2000):
        bits = draw.getrandbits(32)
        address = IPv4Address(bits)
        public = is_public(str(address))
        assert not (public and any(address in network for network in inside))
        assert is_public(str(IPv6Address((0x64FF9B << 96) | bits))) == public
        assert not is_public(str(IPv6Address((0xFFFF << 32) | bits)))  # mapped
        assert not is_public(str(IPv6Address((0x2002 << 112) | (bits << 80))))  # 6to4
        low = draw.getrandbits(120)
        assert not is_public(str(IPv6Address((draw.choice([0xFC, 0xFD, 0xFE, 0xFF]) << 120) | low)))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://localhost/x", "localhost"),
        ("http://127.0.0.1/x", "127.0.0.1"),
        ("http://[::1]/x", "[::1]"),
        ("http://127.1/x", "127.1"),
        ("http://2130706433/x", "2130706433"),
        ("http://0x7f000001/x", "0x7f000001"),
        ("http://0/x", "0"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
    ],
)
def test_a_listed_host_is_refused_for_its_address(url: str, rule: str) -> None:
    """With the machine's own resolver and connector."""
    assert "not public" in refused(url, rule)


def test_even_a_listed_server_of_this_machine() -> None:
    async def main() -> tuple[Problem, list[str]]:
        source = Source(answer())
        async with source.serving() as port:
            with pytest.raises(Problem) as caught:
                host = f"localhost:{port}"
                await fetch_image(f"http://{host}/x", [host], LIMIT)
            return caught.value, source.requests

    problem, requests = asyncio.run(main())
    assert problem.kind == "url-not-allowed" and not requests


def test_a_name_is_looked_up_once() -> None:
    names = Names([ADDRESS], ["127.0.0.1"])
    fetch = Fetch(Source(answer()), names=names)
    assert fetch.data == PHOTO
    assert names.asked == [(HOST, 80)] and fetch.detour.asked == [(ADDRESS, 80)]


def test_the_next_address_is_tried() -> None:
    fetch = Fetch(
        Source(answer()), names=Names(["2606:4700::1111", ADDRESS]), dead=["2606:4700::1111"]
    )
    assert fetch.data == PHOTO
    assert [host for host, _ in fetch.detour.asked] == ["2606:4700::1111", ADDRESS]


def test_the_machines_own_resolver() -> None:
    assert "an address that is not public" in refused("http://localhost/x", "localhost")


# --- the request ------------------------------------------------------------------------------
def test_what_the_source_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_closed_port()}")
    source = Source(answer())
    fetch = Fetch(source, "http://photos.example.com:8080/a%20b?c=d#e", hosts=[f"{HOST}:8080"])
    assert fetch.data == PHOTO and fetch.detour.asked == [(ADDRESS, 8080)]
    (request,) = source.requests
    line, *headers = request.strip().split("\r\n")
    assert line == "GET /a%20b?c=d HTTP/1.1"
    assert headers == [
        f"Host: {HOST}:8080",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "User-Agent: bs_ray",
    ]


def test_a_body_in_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    fetch = Fetch(Source(head, b"5\r\nhello\r\n", b"6\r\n world\r\n", b"0\r\n\r\n", pause_s=0.01))
    assert fetch.data == b"hello world"


REDIRECT = answer(b"secret", "302 Found", Location="http://169.254.169.254/latest/")
FAULTS = {
    "redirect": ([REDIRECT], "302"),
    "missing": ([answer(b"secret", "404 Not Found")], "404"),
    "failing": ([answer(b"secret", "500 Internal Server Error")], "500"),
    "partial": ([answer(b"secret", "206 Partial Content")], "206"),
    "compressed": ([answer(b"secret", Content_Encoding="gzip")], "compressed"),
    "cut short": ([answer(b"secret", Content_Length="100")], "no answer"),
    "two lengths": ([answer(b"secret", content_length="5")], "no answer"),
    "no HTTP": ([b"secret\r\n\r\n"], "no answer"),
    "silent": ([], "no answer"),
    "endless head": ([b"HTTP/1.1 200 OK\r\nX-A: " + b"secret" * 50_000], "no answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_sources_that_do_not_deliver(fault: str) -> None:
    pieces, expected = FAULTS[fault]
    source = Source(*pieces)
    fetch = Fetch(source)
    detail = fetch.refused("url-unreachable")
    assert expected in detail
    assert len(source.requests) == 1  # no redirect is followed, nothing is tried again
    assert not any(word in detail for word in ("secret", ADDRESS, "169.254", "127.0.0.1"))


def test_nobody_listens() -> None:
    fetch = Fetch(Source(), names=Names([ADDRESS, "1.1.1.1"]), dead=[ADDRESS, "1.1.1.1"])
    assert ADDRESS not in fetch.refused("url-unreachable")


def test_no_such_name() -> None:
    """With the machine's own resolver; the second is no name at all."""
    for host in ("nowhere.invalid", "a" * 64 + ".invalid"):
        with pytest.raises(Problem) as caught:
            asyncio.run(fetch_image(f"http://{host}/x", ["*.invalid"], LIMIT))
        assert caught.value.status == 422
        assert caught.value.kind in ("url-unreachable", "url-not-allowed")


# --- bounds -----------------------------------------------------------------------------------
def test_the_largest_file() -> None:
    assert Fetch(Source(answer(bytes(LIMIT)))).data == bytes(LIMIT)


def test_a_file_announced_too_large_is_not_read() -> None:
    # Nothing of it comes, so that whoever reads on finds it cut short.
    fetch = Fetch(Source(answer(b"", Content_Length=str(LIMIT + 1))))
    assert f"at most {LIMIT} bytes" in fetch.refused("too-large", 413)


def test_a_file_that_grows_too_large_is_read_no_further() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    source = Source(head, endless=b"10000\r\n" + bytes(65536) + b"\r\n")
    fetch = Fetch(source)
    fetch.refused("too-large", 413)
    assert fetch.seconds < 10 and source.sent_bytes < 20e6  # what the system's buffers take


def test_a_file_without_a_length() -> None:
    fetch = Fetch(Source(b"HTTP/1.1 200 OK\r\n\r\n", bytes(LIMIT + 1)))
    fetch.refused("too-large", 413)


SLOW = {
    "silent": Source(answer(), pause_s=30),
    "drip": Source(b"HTTP/1.1 200 OK\r\n\r\n", pause_s=0.05, endless=b"x"),
    "drip of a head": Source(b"HTTP/1.1 200 OK\r\n", pause_s=0.05, endless=b"x: y\r\n"),
    "waiting": Source(endless=b"HTTP/1.1 102 Processing\r\n\r\n", pause_s=0.05),
}


@pytest.mark.parametrize("kind", SLOW)
def test_slow_sources(kind: str) -> None:
    fetch = Fetch(SLOW[kind], timeout_s=0.4)
    fetch.refused("url-unreachable")
    assert 0.3 < fetch.seconds < 10


def test_a_slow_resolver() -> None:
    fetch = Fetch(Source(answer()), names=Names([ADDRESS], pause_s=30), timeout_s=0.4)
    fetch.refused("url-unreachable")
    assert fetch.seconds < 10


# --- TLS --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, for HOST, and its key.pem."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN=test -addext subjectAltName=DNS:{HOST} -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


def test_the_certificate_is_the_names(server_tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Though the connection goes to an address, the name is what TLS asks for and checks."""
    seen: list[str] = []
    server_tls.sni_callback = lambda _, name, __: seen.append(name)
    source = Source(answer())
    fetch = Fetch(source, f"https://{HOST}/x", server_tls=server_tls, tls=trusting)
    assert fetch.data == PHOTO and fetch.detour.asked == [(ADDRESS, 443)]
    assert seen == [HOST] and f"Host: {HOST}\r\n" in source.requests[0]


def test_another_names_certificate(server_tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    url, hosts = "https://other.example.com/x", ["*.example.com"]
    source = Source(answer())
    Fetch(source, url, hosts=hosts, server_tls=server_tls, tls=trusting).refused("url-unreachable")
    assert not source.requests


def test_a_certificate_of_nobody_known(server_tls: ssl.SSLContext) -> None:
    source = Source(answer())
    Fetch(source, f"https://{HOST}/x", server_tls=server_tls).refused("url-unreachable")
    assert not source.requests
