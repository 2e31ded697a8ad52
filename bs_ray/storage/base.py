"""What all kinds of store have in common: their methods, an object's entry, how long to wait."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TEMPORARY = ".bs-ray-tmp-"
"""Begins the names of files that are being written; they are never listed."""


@dataclass(frozen=True)
class Entry:
    """One object."""

    key: str
    """Relative to its store."""
    size: int
    """In bytes."""
    etag: str
    """Another one for other content."""
    problem: str = ""
    """Why it cannot be read, though it is there; "" as a rule."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a connection, for the next bytes, and for all attempts together."""

    connect_s: float = 3.0
    read_s: float = 15.0
    deadline_s: float = 60.0  # no new attempt starts after this


HURRIED = Patience(connect_s=1.5, read_s=2.5, deadline_s=1.5)
"""For checks that must answer within seconds."""


class Backend(Protocol):
    """What each kind of store does. `Store` documents the methods and has checked the keys."""

    def read(self, key: str) -> bytes: ...
    def write(self, key: str, data: bytes) -> None: ...
    def write_if_absent(self, key: str, data: bytes) -> bool: ...
    def stat(self, key: str) -> Entry | None: ...
    def walk(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def local_copy(self, key: str, cache_dir: Path | None) -> Path: ...
    def download(self, entry: Entry, path: Path, report: Callable[[int], None]) -> None: ...
    def check(self, write: bool) -> None: ...
    def arrow_filesystem(self) -> tuple[Any, str]: ...


def probe_name() -> str:
    """A key that nobody else uses, to try writing with."""
    return f"{TEMPORARY}probe-{secrets.token_hex(8)}"
