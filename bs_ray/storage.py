"""One face for folders and object stores: a `Store` is a root, and objects below it have keys.

    store = Store("s3://bucket/faces")          # or Store("some/folder")
    store.write("a/b.json", b"{}")              # atomic: readers see all of it or the old one
    store.write_if_absent("_done", token)       # exactly one of many racing writers gets True

S3 endpoint and credentials come from the standard environment (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) of the process that makes the call, never from the
job and never from a pickle. There is one retry layer, here, with a deadline.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

_TEMPORARY = ".bs-ray-tmp-"  # local writes in progress; never listed
_CHUNK_BYTES = 1 << 20


class StorageError(ValueError):
    """Storage cannot do what was asked. The message says got, expected and what to do."""


class MissingKeyError(StorageError, FileNotFoundError):
    """No object under that key."""


class MissingBucketError(StorageError):
    """No such bucket or folder."""


class AccessError(StorageError):
    """Wrong credentials, or credentials without this right."""


class UnreachableError(StorageError):
    """The store did not answer, or not in time."""


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


class _Backend(Protocol):
    def read(self, key: str) -> bytes: ...
    def write(self, key: str, data: bytes) -> None: ...
    def write_if_absent(self, key: str, data: bytes) -> bool: ...
    def stat(self, key: str) -> Entry | None: ...
    def walk(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def local_copy(self, key: str, cache_dir: Path | None) -> Path: ...
    def check(self, write: bool) -> None: ...


class Store:
    """A folder or an s3:// prefix. Picklable: clients are opened in the process that uses them.

    `uri` is `s3://bucket[/prefix]`, `file:///folder` or a folder (made absolute). Keys are
    slash-separated and cannot leave the root. Every method raises `StorageError`.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = _normal_uri(os.fspath(uri))

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def join(self, *parts: str) -> "Store":
        """The store below this one, e.g. `Store("s3://b").join("runs", "r1")`."""
        return Store("/".join([self.uri.rstrip("/"), *(_checked_key(p) for p in parts)]))

    def read(self, key: str) -> bytes:
        """The whole object. Raises MissingKeyError; never returns a short or altered body."""
        return self._backend().read(_checked_key(key))

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object in one step."""
        self._backend().write(_checked_key(key), bytes(data))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object unless one is there; of any number of racing writers one gets True.

        When the reply to our own winning write is lost, the retry finds the object there; it is
        then read back and equal bytes count as our win. Put something of the writer's own into
        `data` (a token) where two writers could otherwise write the same bytes.
        """
        return self._backend().write_if_absent(_checked_key(key), bytes(data))

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key. A missing bucket also reads as False."""
        return self._backend().stat(_checked_key(key)) is not None

    def list(self, prefix: str = "") -> list[Entry]:
        """All objects whose key starts with `prefix`, sorted by the bytes of their keys.

        Stores page and order in their own ways, so the sort is ours. `prefix` is a plain string:
        "a/b" also finds "a/bc"; a missing folder lists as empty, a missing bucket raises.
        """
        return sorted(self.walk(prefix), key=lambda e: e.key.encode())

    def walk(self, prefix: str = "") -> Iterator[Entry]:
        """The same as they come, page by page, in the store's own order."""
        if prefix:
            _checked_key(prefix.rstrip("/") or prefix)
        return self._backend().walk(prefix)

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""
        self._backend().delete(_checked_key(key))

    def local_copy(self, key: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """A file with the object's content: the file itself in a folder, else a cached download.

        The cache (default: `bs_ray` in the user's cache folder, or $BS_RAY_CACHE) is keyed by
        content tag, so a changed object is fetched again; processes of one node fetch it once.
        """
        folder = Path(cache_dir) if cache_dir is not None else None
        return self._backend().local_copy(_checked_key(key), folder)

    def check(self, write: bool = False, timeout_s: float = 5.0) -> None:
        """Raise StorageError within `timeout_s` unless this can be listed (and written to).

        With `write`, a small object is written and deleted again; a missing folder is created.
        """
        _within(timeout_s, lambda: self._backend(_HURRIED).check(write), self.uri)

    def arrow_filesystem(self) -> tuple[Any, str]:
        """(pyarrow filesystem, path below it), for Ray Train's storage and Ray Data's readers."""
        from pyarrow import fs

        if not self.uri.startswith("s3://"):
            return fs.LocalFileSystem(), self.uri
        options: dict[str, Any] = {"connect_timeout": 3, "request_timeout": 30}
        endpoint = _endpoint(os.environ)
        if endpoint:
            parts = urlsplit(endpoint)
            options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        region = _region(os.environ)
        return fs.S3FileSystem(region=region, **options), self.uri.removeprefix("s3://")

    def _backend(self, patience: Patience = Patience()) -> _Backend:
        if self.uri.startswith("s3://"):
            bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
            return _S3(bucket, prefix and prefix + "/", patience)
        return _Folder(Path(self.uri))


_HURRIED = Patience(connect_s=1.5, read_s=2.5, deadline_s=1.5)


def split_uri(uri: str | os.PathLike[str]) -> tuple[Store, str]:
    """The store and key of a URI that names one object: `s3://b/x/y.json` -> (s3://b/x, y.json).

    Raises StorageError for a URI that names no object (a bucket, or a trailing slash).
    """
    text = os.fspath(uri)
    head, slash, name = text.rpartition("/")
    if not name or head in ("s3:/", "file:/"):
        raise StorageError(
            f"{text!r} names no object. Expected s3://bucket/key or a path of a file."
        )
    return Store(head or (slash or ".")), _checked_key(name)


def _normal_uri(uri: str) -> str:
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(
                f"{uri!r} has no bucket. Expected s3://bucket or s3://bucket/prefix."
            )
        prefix = prefix.strip("/")
        return f"s3://{bucket}/{_checked_key(prefix)}" if prefix else f"s3://{bucket}"
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(
            f"Cannot open {uri!r}. Expected a folder, file:///folder or s3://bucket."
        )
    path = uri.removeprefix("file://")
    if not path or "\0" in path:
        raise StorageError(f"{uri!r} is no folder. Expected a folder, or s3://bucket/prefix.")
    return os.path.abspath(os.path.expanduser(path))


def is_key(key: str) -> bool:
    """Whether a key stays below its store's root and means one thing only."""
    parts = key.split("/")
    return not ("\0" in key or "\\" in key or any(p in ("", ".", "..") for p in parts))


def _checked_key(key: str) -> str:
    if not is_key(key):
        raise StorageError(
            f"{key!r} is not a key. Expected names joined by single slashes, relative, without "
            "'.', '..', backslash or NUL."
        )
    return key


def _within(timeout_s: float, work: Callable[[], None], uri: str) -> None:
    """Run `work` for at most `timeout_s`. A thread, for no timeout covers DNS or a dead mount."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        where = _where(os.environ) if uri.startswith("s3://") else "its file system"
        raise UnreachableError(f"{uri}: no answer from {where} in {timeout_s:g} s. Is it up?")
    if outcome[0] is not None:
        raise outcome[0]


# ---------------------------------------------------------------------------- folders


class _Folder:
    """Objects are files. Writes go to a temporary file in the same folder, then take their name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key), self._temporary(key, data) as temporary:
            os.replace(temporary, self.root / key)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with self._errors("write", key), self._temporary(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)  # atomic, contents included
            except FileExistsError:
                return False
            return True

    def stat(self, key: str) -> Entry | None:
        with self._errors("read", key):
            try:
                return _file_entry(self.root / key, key) if (self.root / key).is_file() else None
            except FileNotFoundError:
                return None

    def walk(self, prefix: str) -> Iterator[Entry]:
        top = self.root / os.path.dirname(prefix)
        for folder, _, names in os.walk(top, onerror=_refuse_unreadable, followlinks=True):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if name.startswith(_TEMPORARY) or not key.startswith(prefix):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield _file_entry(path, key)

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            (self.root / key).unlink(missing_ok=True)

    def local_copy(self, key: str, cache_dir: Path | None) -> Path:
        if not (self.root / key).is_file():
            raise _no_key(self.root / key)
        return self.root / key

    def check(self, write: bool) -> None:
        if not write:
            if not self.root.is_dir():
                raise MissingBucketError(
                    f"Folder {self.root} does not exist. Expected an existing folder to read from."
                )
            with self._errors("list", ""):
                os.listdir(self.root)
            return
        probe = _probe_name()
        self.write(probe, b"")
        self.delete(probe)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[Path]:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / (_TEMPORARY + secrets.token_hex(8))
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave the name without the bytes
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        path = self.root / key
        try:
            yield
        except FileNotFoundError as error:
            if verb == "read":
                raise _no_key(path) from error
            raise AccessError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error
        except PermissionError as error:
            raise AccessError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error
        except OSError as error:
            raise StorageError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error


_FOLDER_HELP = "Expected a folder with the rights and the space for it."


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # os.walk would skip the folder in silence
        raise AccessError(f"Cannot list {error.filename}: {error.strerror}. {_FOLDER_HELP}")


def _file_entry(path: Path, key: str) -> Entry:
    stat = path.stat()
    return Entry(key, stat.st_size, f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _no_key(where: object) -> MissingKeyError:
    return MissingKeyError(f"{where} does not exist. Expected an object there; list what there is.")


def _probe_name() -> str:
    return f"{_TEMPORARY}probe-{secrets.token_hex(8)}"


# ---------------------------------------------------------------------------- S3


class _S3:
    """Objects of a bucket. Each carries its own sha256, which every read verifies."""

    def __init__(self, bucket: str, prefix: str, patience: Patience) -> None:
        self.bucket, self.prefix, self.patience = bucket, prefix, patience
        with _opening:  # a client takes a quarter of a second; sixteen threads share the first
            self.client = _cached_client(os.getpid(), _environment_key(), patience)

    def read(self, key: str) -> bytes:
        seen: set[str] = set()

        def attempt() -> bytes:
            reply = self._call("get_object", key)
            data: bytes = reply["Body"].read()
            digest = hashlib.sha256(data).hexdigest()
            self._verify(key, reply, len(data), digest)
            # Objects of others carry no sha256. Most stores' tag is their MD5, but not all: bytes
            # that come twice are what is stored.
            foreign = "sha256" not in reply.get("Metadata", {})
            if foreign and digest not in seen and not _agrees(reply["ETag"], data):
                seen.add(digest)
                raise _DamagedBody(f"the MD5 of the bytes is not the object's tag {reply['ETag']}")
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
                # SeaweedFS' 412 lacks the <Condition> element, so only the status is looked at.
                if _status(error) != 412:
                    raise
                # After a failed attempt the object may be our own, its reply lost on the way.
                return attempts > 1 and self.read(key) == data
            return True

        return self._retry("write", key, attempt)

    def stat(self, key: str) -> Entry | None:
        def attempt() -> Entry | None:
            try:
                reply = self._call("head_object", key)
            except Exception as error:
                if _status(error) == 404:
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
                if key and not key.endswith("/"):  # "folder" markers of S3 browsers
                    yield Entry(key, found["Size"], found["ETag"].strip('"'))

    def delete(self, key: str) -> None:
        self._retry("delete", key, lambda: self._call("delete_object", key))

    def local_copy(self, key: str, cache_dir: Path | None) -> Path:
        entry = self.stat(key)
        if entry is None:
            raise _no_key(self._name(key))
        folder = cache_dir or _default_cache()
        path = folder / self._cache_name(key, entry.etag) / Path(key).name
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others of this node wait, then find it there
            if not path.exists():
                self._retry("read", key, lambda: self._download(key, entry, path))
        return path

    def check(self, write: bool) -> None:
        self._list("", None, max_keys=1)
        if write:
            probe = _probe_name()
            self.write(probe, b"")
            self.delete(probe)

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        digest = {"sha256": hashlib.sha256(data).hexdigest()}
        self._call("put_object", key, Body=data, Metadata=digest, **condition)

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        call = getattr(self.client, operation)
        reply: dict[str, Any] = call(Bucket=self.bucket, Key=self.prefix + key, **arguments)
        return reply

    def _list(self, prefix: str, token: str | None, max_keys: int = 1000) -> dict[str, Any]:
        arguments = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, "MaxKeys": max_keys}
        if token:
            arguments["ContinuationToken"] = token
        page: dict[str, Any] = self._retry(
            "list", prefix, lambda: self.client.list_objects_v2(**arguments)
        )
        return page

    def _download(self, key: str, entry: Entry, path: Path) -> None:
        temporary = path.parent / (_TEMPORARY + secrets.token_hex(8))
        try:
            reply = self._call("get_object", key, IfMatch=f'"{entry.etag}"')
            with open(temporary, "xb") as file:
                size, digest = _copy(reply["Body"], file)
            self._verify(key, reply, size, digest)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _verify(self, key: str, reply: Mapping[str, Any], size: int, digest: str) -> None:
        if size != reply["ContentLength"]:
            raise _DamagedBody(f"{size} bytes came, {reply['ContentLength']} were announced")
        promised = reply.get("Metadata", {}).get("sha256", digest)
        if digest != promised:
            raise _DamagedBody(f"sha256 of the bytes is {digest}, of what was written {promised}")

    def _retry(self, verb: str, key: str, attempt: Callable[[], Any]) -> Any:
        """The only retry layer: transient faults, with growing pauses, until the deadline."""
        start, pause_s = time.monotonic(), 0.1
        while True:
            try:
                return attempt()
            except StorageError:
                raise
            except Exception as error:
                spent_s = time.monotonic() - start
                if not _is_transient(error) or spent_s + pause_s > self.patience.deadline_s:
                    raise self._explain(verb, key, error, spent_s) from error
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, 3.0)

    def _explain(self, verb: str, key: str, error: Exception, spent_s: float) -> StorageError:
        """Turn a client's exception into ours. No credential is ever part of a message."""
        from botocore.exceptions import ClientError

        name, where = self._name(key), _where(os.environ)
        if not isinstance(error, ClientError):
            return _explain_no_reply(verb, name, self.bucket, where, error, spent_s)
        code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
        answer = str(status) if code in ("", str(status)) else f"{status} {code}"
        got = f"Cannot {verb} {name}: {where} answered {answer}"
        if status == 404 and (verb != "read" or code == "NoSuchBucket"):
            return MissingBucketError(
                f"{got}. Expected a bucket {self.bucket!r} there; create it, or correct the URI or "
                "AWS_ENDPOINT_URL."
            )
        if status == 404:
            return _no_key(name)
        if status == 412:
            return StorageError(f"{got}: the object changed while it was being read. Run again.")
        if status in (401, 403) or code in _CREDENTIAL_CODES:
            return AccessError(
                f"{got}. Expected credentials that may {verb} in bucket {self.bucket!r}; check "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy."
            )
        kind = UnreachableError if status >= 500 else StorageError
        return kind(f"{got} after {spent_s:.1f} s, in bucket {self.bucket!r}. See the store's log.")

    def _name(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _cache_name(self, key: str, etag: str) -> str:
        identity = "\0".join([_endpoint(os.environ) or "", self._name(key), etag])
        return hashlib.sha256(identity.encode()).hexdigest()[:32]


_MD5_TAG = re.compile(r'"?([0-9a-f]{32})"?')


def _agrees(etag: str, data: bytes) -> bool:
    """Whether a tag may be that of these bytes. Of parts and other schemes nothing is known."""
    match = _MD5_TAG.fullmatch(etag)
    return not match or match[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()


class _DamagedBody(Exception):
    """A body that is not what was written; worth another attempt."""


_CREDENTIAL_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}


def _status(error: Exception) -> int:
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_transient(error: Exception) -> bool:
    from botocore import exceptions as aws
    from urllib3.exceptions import HTTPError

    if isinstance(error, aws.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        return _status(error) in (408, 429) or _status(error) >= 500 or code in _TRANSIENT_CODES
    if isinstance(error, aws.SSLError):
        return False  # a wrong certificate stays wrong
    no_reply = (aws.HTTPClientError, aws.ConnectionError, HTTPError, ConnectionError, TimeoutError)
    damaged = (aws.IncompleteReadError, aws.FlexibleChecksumError, _DamagedBody)
    return isinstance(error, (*no_reply, *damaged))


def _explain_no_reply(
    verb: str, name: str, bucket: str, where: str, error: Exception, spent_s: float
) -> StorageError:
    from botocore import exceptions as aws

    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError)):
        return AccessError(
            f"Cannot {verb} {name}: no credentials for bucket {bucket!r}. Expected "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or an instance role)."
        )
    got = f"Cannot {verb} {name}: {type(error).__name__} from {where} after {spent_s:.1f} s"
    if isinstance(error, _DamagedBody):
        return StorageError(f"{got}: {error}. The object in bucket {bucket!r} is damaged.")
    if _is_transient(error):
        return UnreachableError(
            f"{got}. Expected an answer about bucket {bucket!r}; is AWS_ENDPOINT_URL right, and "
            "the store up?"
        )
    return StorageError(f"{got}: {error}. Check the URI and AWS_ENDPOINT_URL, bucket {bucket!r}.")


def _copy(source: Any, target: BinaryIO) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _default_cache() -> Path:
    chosen = os.environ.get("BS_RAY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "bs_ray"


def _endpoint(env: Mapping[str, str]) -> str | None:
    return env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")


def _region(env: Mapping[str, str]) -> str:
    return env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"


def _where(env: Mapping[str, str]) -> str:
    endpoint = _endpoint(env)
    return urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "Amazon S3"


def _environment_key() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))


_opening = threading.Lock()


@lru_cache(maxsize=16)
def _cached_client(pid: int, environment: tuple[tuple[str, str], ...], patience: Patience) -> Any:
    # A client's connections do not survive a fork, and belong to one set of credentials.
    return s3_client(dict(environment), patience)


def s3_client(env: Mapping[str, str], patience: Patience = Patience()) -> Any:
    """A botocore S3 client for the AWS_* variables in `env`, without retries of its own.

    Without AWS_ACCESS_KEY_ID botocore's own chain applies (profile, web identity, instance role).
    """
    import botocore.session
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    endpoint = _endpoint(env)
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"total_max_attempts": 1},
        max_pool_connections=32,
        # Stores other than Amazon's seldom serve bucket names as host names, and some refuse the
        # newer default checksums; ours is in the object's metadata.
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation=env.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
    )
    client = botocore.session.Session().create_client(
        "s3",
        region_name=_region(env),
        endpoint_url=endpoint,
        aws_access_key_id=env.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=env.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=env.get("AWS_SESSION_TOKEN"),
        config=config,
    )
    # Stores written in Go answer an empty PUT without the "100 Continue" that botocore waits for,
    # and its next request on that connection then reads the wrong reply and hangs.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client
