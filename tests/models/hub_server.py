"""A server on loopback that speaks the hub's protocol, as far as downloads need it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """What is on the server, and what was fetched from it."""

    repos: dict[str, Path]
    """org/name -> the repository's files."""
    gated: set[str] = field(default_factory=set)
    url: str = ""
    fetched: list[str] = field(default_factory=list)
    """org/name/file of every GET of a file."""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._model(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
                if self._may(found[1]):
                    self._json([self._about(found[1], f) for f in self._files(found[1])])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(found[1], found[3])
            else:
                self._refuse(404, "EntryNotFound")

        do_HEAD = do_GET

        def _model(self, repo: str, revision: str) -> None:
            if not self._may(repo, listing=True):
                return
            if revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
                return
            siblings = [{"rfilename": self._name(repo, f)} for f in self._files(repo)]
            self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

        def _file(self, repo: str, name: str) -> None:
            if not self._may(repo):
                return
            file = hub.repos[repo] / name
            if not file.is_file():
                self._refuse(404, "EntryNotFound")
                return
            data = file.read_bytes()
            if self.command == "GET":
                hub.fetched.append(f"{repo}/{name}")
            start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:])

        def _may(self, repo: str, listing: bool = False) -> bool:
            """Anybody may see that a gated repository is there, and nobody its files."""
            if repo not in hub.repos:
                self._refuse(401, "RepoNotFound")
            elif repo in hub.gated and not listing:
                self._refuse(403, "GatedRepo")
            else:
                return True
            return False

        def _files(self, repo: str) -> list[Path]:
            return sorted(f for f in hub.repos[repo].rglob("*") if f.is_file())

        def _name(self, repo: str, file: Path) -> str:
            return file.relative_to(hub.repos[repo]).as_posix()

        def _about(self, repo: str, file: Path) -> dict[str, object]:
            size, name = file.stat().st_size, self._name(repo, file)
            return {"type": "file", "path": name, "size": size, "oid": "0" * 40}

        def _json(self, found: object) -> None:
            self._send(200, json.dumps(found).encode())

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
