"""What kinds of store share: an object's entry, how long to wait, the calls they answer."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TEMPORARY = ".bs-ray-tmp-"  # begins the names of local writes in progress; never listed


@dataclass(frozen=True)
class Entry:
    """One object: `key` relative to its store, `size` in bytes, `etag` changes with content."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Patience:
    """How long to wait: per connection, per silent read, and for all attempts together."""

    connect_s: float = 3.0
    read_s: float = 15.0
    deadline_s: float = 60.0  # no new attempt starts after this


HURRIED = Patience(connect_s=1.5, read_s=2.5, deadline_s=1.5)  # for checks that answer in seconds


class Backend(Protocol):
    """What a kind of store does; `Store` has checked the keys and says what each call means."""

    def read(self, key: str) -> bytes: ...
    def write(self, key: str, data: bytes) -> None: ...
    def write_if_absent(self, key: str, data: bytes) -> bool: ...
    def stat(self, key: str) -> Entry | None: ...
    def walk(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def local_copy(self, key: str, cache_dir: Path | None) -> Path: ...
    def check(self, write: bool) -> None: ...
    def arrow_filesystem(self) -> tuple[Any, str]: ...


def probe_name() -> str:
    """A key that nobody else uses, to try writing with."""
    return f"{TEMPORARY}probe-{secrets.token_hex(8)}"
