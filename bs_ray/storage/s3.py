"""S3, and stores with its API: objects of a bucket."""

import base64
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from bs_ray.storage.base import Entry, Patience, probe_name
from bs_ray.storage.cache import cached
from bs_ray.storage.errors import StorageError, no_key
from bs_ray.storage.s3_client import client_of_environment, endpoint_url, region
from bs_ray.storage.s3_errors import DamagedBody, explain, is_transient, status_of

_CHUNK_BYTES = 1 << 20
_PIECE_BYTES = 64 << 20
"""Of a download that can be resumed, what one request brings."""


class S3:
    """Objects of a bucket. Each carries its own sha256, which every read verifies."""

    page_keys = 1000
    """Keys in one answer of a listing; stores give no more."""

    def __init__(self, bucket: str, prefix: str, patience: Patience) -> None:
        self.bucket, self.prefix, self.patience = bucket, prefix, patience
        self.client = client_of_environment(patience)

    def read(self, key: str) -> bytes:
        seen: set[str] = set()

        def attempt() -> bytes:
            reply = self._call("get_object", key)
            data: bytes = reply["Body"].read()
            digest = hashlib.sha256(data).hexdigest()
            self._verify(key, reply, len(data), digest)
            # Objects that others wrote carry no sha256. At most stores the tag is the MD5, but not
            # at all; there, bytes that arrive twice are taken for what is stored.
            foreign = "sha256" not in reply.get("Metadata", {})
            if foreign and digest not in seen and not _agrees(reply["ETag"], data):
                seen.add(digest)
                raise DamagedBody(f"the MD5 of the bytes is not the object's tag {reply['ETag']}")
            return data

        return self._retry("read", key, attempt)

    def write(self, key: str, data: bytes) -> None:
        self._retry("write", key, lambda: self._put(key, data))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self._put(key, data, IfNoneMatch="*")
            except Exception as error:
                # Only the status counts, since SeaweedFS' 412 lacks the <Condition> element.
                if status_of(error) != 412:
                    raise
                # After a failed attempt the object may be this writer's own, whose reply was lost.
                return attempts > 1 and self.read(key) == data
            return True

        return self._retry("write", key, attempt)

    def stat(self, key: str) -> Entry | None:
        def attempt() -> Entry | None:
            try:
                reply = self._call("head_object", key)
            except Exception as error:
                if status_of(error) == 404:
                    return None
                raise
            return Entry(key, reply["ContentLength"], reply["ETag"].strip('"'))

        return self._retry("read", key, attempt)

    def walk(self, prefix: str) -> Iterator[Entry]:
        page: dict[str, Any] = {}
        while page.get("IsTruncated", True):
            page = self._list(prefix, page.get("NextContinuationToken"))
            for found in page.get("Contents", []):
                key = found["Key"].removeprefix(self.prefix)
                if key and not key.endswith("/"):  # S3 browsers make "folder" objects
                    yield Entry(key, found["Size"], found["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        self._retry("delete", key, lambda: self._call("delete_object", key))

    def local_copy(self, key: str, cache_dir: Path | None) -> Path:
        entry = self.stat(key)
        if entry is None:
            raise no_key(self._name(key))
        # Several stores may hold an object under the same name.
        identity = "\0".join([endpoint_url(os.environ) or "", self._name(key), entry.etag])
        return cached(
            cache_dir,
            identity,
            Path(key).name,
            lambda path: self._retry("read", key, lambda: self._download(key, entry, path)),
        )

    def download(self, entry: Entry, path: Path, report: Callable[[int], None]) -> None:
        if path.exists() and path.stat().st_size > entry.size:
            path.unlink()
        path.touch()
        report(path.stat().st_size)
        while (start := path.stat().st_size) < entry.size:  # each piece has a deadline of its own
            self._retry("read", entry.key, lambda: self._download_piece(entry, path))
            report(path.stat().st_size - start)
        self._check_file(entry, path)

    def check(self, write: bool) -> None:
        self._list("", None, max_keys=1)
        if write:
            probe = probe_name()
            self.write(probe, b"")
            self.delete(probe)

    def arrow_filesystem(self) -> tuple[Any, str]:
        from pyarrow import fs

        options: dict[str, Any] = {"connect_timeout": 3, "request_timeout": 30}
        endpoint = endpoint_url(os.environ)
        if endpoint:
            parts = urlsplit(endpoint)
            options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        filesystem = fs.S3FileSystem(region=region(os.environ), **options)
        return filesystem, f"{self.bucket}/{self.prefix}".rstrip("/")

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        digest = {"sha256": hashlib.sha256(data).hexdigest()}
        # With it the store refuses altered bytes. The sha256 in the signature would do, but not all
        # stores compare it with the body.
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._call("put_object", key, Body=data, ContentMD5=md5, Metadata=digest, **condition)

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        call = getattr(self.client, operation)
        reply: dict[str, Any] = call(Bucket=self.bucket, Key=self.prefix + key, **arguments)
        return reply

    def _list(self, prefix: str, token: str | None, max_keys: int | None = None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        arguments["MaxKeys"] = max_keys or self.page_keys
        if token:
            arguments["ContinuationToken"] = token
        page: dict[str, Any] = self._retry(
            "list", prefix, lambda: self.client.list_objects_v2(**arguments)
        )
        return page

    def _download(self, key: str, entry: Entry, path: Path) -> None:
        reply = self._call("get_object", key, IfMatch=f'"{entry.etag}"')
        with open(path, "wb") as file:
            size, digest = _copy(reply["Body"], file)
        self._verify(key, reply, size, digest)

    def _download_piece(self, entry: Entry, path: Path) -> None:
        """Add the next bytes to a file. What arrives before a fault is kept."""
        start = path.stat().st_size
        end = min(start + _PIECE_BYTES, entry.size)
        wanted = {"Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{entry.etag}"'}
        body = self._call("get_object", entry.key, **wanted)["Body"]
        with open(path, "ab") as file:
            _copy(body, file)
        if path.stat().st_size > end:
            path.unlink()
            raise StorageError(
                f"{self._name(entry.key)}: got more bytes than were wanted; expected a store "
                "that answers Range requests"
            )
        if path.stat().st_size < end:
            raise DamagedBody(f"{path.stat().st_size - start} bytes came of {end - start}")

    def _check_file(self, entry: Entry, path: Path) -> None:
        """Remove a file, and raise StorageError, unless its hash is the object's."""
        head = self._retry("read", entry.key, lambda: self._call("head_object", entry.key))
        promised, kind = head.get("Metadata", {}).get("sha256"), "sha256"
        if not promised and (tag := _MD5_TAG.fullmatch(entry.etag)):
            promised, kind = tag[1], "md5"
        if not promised:  # uploaded in parts by others: the listing's tag and size are all there is
            return
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, kind).hexdigest()
        if digest != promised:
            path.unlink()
            raise StorageError(
                f"{self._name(entry.key)}: got bytes with {kind} {digest}; expected {promised}. "
                "Run again; if it stays, write the object again"
            )

    def _verify(self, key: str, reply: Mapping[str, Any], size: int, digest: str) -> None:
        if size != reply["ContentLength"]:
            raise DamagedBody(f"{size} bytes came, {reply['ContentLength']} were announced")
        promised = reply.get("Metadata", {}).get("sha256", digest)
        if digest != promised:
            raise DamagedBody(f"sha256 of the bytes is {digest}, of what was written {promised}")

    def _retry(self, verb: str, key: str, attempt: Callable[[], Any]) -> Any:
        """The only retry layer: it repeats an attempt after a transient fault, with growing pauses,
        until the deadline."""
        start, pause_s = time.monotonic(), 0.1
        while True:
            try:
                return attempt()
            except StorageError:
                raise
            except Exception as error:
                spent_s = time.monotonic() - start
                if not is_transient(error) or spent_s + pause_s > self.patience.deadline_s:
                    raise explain(verb, self._name(key), self.bucket, error, spent_s) from error
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, 3.0)

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


_MD5_TAG = re.compile(r'"?([0-9a-f]{32})"?')


def _agrees(etag: str, data: bytes) -> bool:
    """Whether a tag may be that of these bytes; it may where it is no MD5 (multipart uploads)."""
    match = _MD5_TAG.fullmatch(etag)
    return not match or match[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _copy(source: Any, target: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()
