"""API keys: who may call, with which sliders and how often.

A keys file is YAML, on any storage. It holds the SHA-256 of each key rather than the key:

    keys:
      - id: team-a
        sha256: 9f2c...              # of the key, which `bs-ray keys add` makes
        sliders: ["age", "smile-*"]  # wildcards; all where left out; "words" for any words
        requests_per_minute: 600     # no limit where left out
        burst: 20
        expires: 2027-01-01
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import math
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bs_ray.config import check_name
from bs_ray.config.explain import explain
from bs_ray.serve.http.problems import Problem
from bs_ray.storage import MissingKeyError, Store, split_uri

PREFIX = "bsr_"
"""Begins every key, so that people and secret scanners recognise one."""
REREAD_S = 30.0
"""The keys file is read again before an answer once it was read longer ago than this."""
_PATIENCE_S = 2.0
_MAX_BUCKETS = 10_000
_GLOB = re.compile(r"[a-z0-9_*?\[\]!-]{1,80}")
_log = logging.getLogger(__name__)


class KeysError(ValueError):
    """A keys file that cannot be used; the message says got, expected and what to do."""


def _checked_glob(glob: str) -> str:
    if not _GLOB.fullmatch(glob):
        raise ValueError(
            f"got {glob[:80]!r}; expected a glob over slider names, such as 'smile-*' (no version)"
        )
    return glob


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Key(_Strict):
    """Who calls, and what they may do."""

    id: Annotated[str, AfterValidator(check_name)]
    """Names the key in logs, metrics and this file."""
    sliders: list[Annotated[str, AfterValidator(_checked_glob)]] = ["*"]
    """Globs over the names of the sliders that the key may use and see; `words` stands for the
    sliders of words."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Sustained rate; None is no limit."""
    burst: int = Field(20, ge=1)
    """Requests that may come at once after a pause."""
    expires: date | None = None
    """The first day, in UTC, on which the key is no longer valid."""

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Self:
        if "burst" in self.model_fields_set and self.requests_per_minute is None:
            raise ValueError("got burst without requests_per_minute; expected both or neither")
        return self

    def allows(self, slider: str) -> bool:
        """Whether the key may use a slider: `name`, or `name@version`."""
        name = slider.partition("@")[0]
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.sliders)


ANONYMOUS = Key(id="anonymous")
"""Everyone, where the server has no keys file."""


class KeyEntry(Key):
    """A key as its file has it."""

    # A plain hash will do: salt and stretching slow down the guessing of passwords, and nobody
    # guesses 256 random bits.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, in hex."""


class KeyFile(_Strict):
    """A keys file."""

    keys: list[KeyEntry]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for field in ("id", "sha256"):
            counts = Counter(getattr(key, field) for key in self.keys)
            if twice := [value for value, n in counts.items() if n > 1]:
                raise ValueError(f"got {field} {twice[0]} more than once; expected each once")
        return self


# --- who calls ---------------------------------------------------------------------------------
class KeyRing:
    """The keys of a file; without a file everybody may call. For one event loop.

    The file is read again where it was last read more than REREAD_S ago, so that keys change
    without a restart. While it cannot be read, the keys known last stay valid.
    """

    def __init__(
        self,
        uri: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ):
        """clock: in seconds. Raises KeysError or StorageError for a file that cannot be used."""
        self._uri, self._clock, self._today = uri, clock, today
        self._keys = _by_hash(uri) if uri is not None else {}
        self._read_s = self._started_s = clock()
        self._rereading: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, uri: str | None) -> KeyRing:
        """The ring of a keys file. Without one every caller is ANONYMOUS."""
        return cls(uri)

    async def authenticate(self, authorization: str | None) -> Key:
        """The key in the value of an Authorization header. Raises Problem 401.

        The problem does not tell whether a key is unknown, expired or malformed.
        """
        if self._uri is None:
            return ANONYMOUS
        await self._refresh()
        scheme, _, secret = (authorization or "").partition(" ")
        # The time of a look-up reveals something about hashes alone, which nobody can choose.
        key = self._keys.get(_digest(secret.strip()))
        valid = key is not None and (key.expires is None or self._today() < key.expires)
        if key is None or not valid or scheme.lower() != "bearer":
            raise Problem(
                401,
                "invalid-key",
                f"Authorization: got no valid key; expected `Bearer {PREFIX}...`. Ask whoever runs "
                "this server for a key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key

    async def _refresh(self) -> None:
        """Read the file again where that is due. A slow store delays nobody for long."""
        if self._rereading is None:
            if self._clock() - self._read_s < REREAD_S:
                return
            self._started_s = self._clock()
            self._rereading = asyncio.create_task(self._reread())
        left_s = self._started_s + _PATIENCE_S - self._clock()
        await asyncio.wait({self._rereading}, timeout=max(0.0, left_s))

    async def _reread(self) -> None:
        assert self._uri is not None
        try:
            self._keys = await asyncio.to_thread(_by_hash, self._uri)
        except Exception as error:  # of any kind: the keys known last stay valid
            _log.warning(
                "keys: those known last stay valid, since the file cannot be read: %s", error
            )
        finally:
            self._read_s = self._clock()
            self._rereading = None


def _by_hash(uri: str) -> dict[str, KeyEntry]:
    store, name = split_uri(uri)
    return {key.sha256: key for key in parse_keys(store.read(name), uri).keys}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def parse_keys(data: bytes, source: str) -> KeyFile:
    """A keys file from its bytes. Raises KeysError, which names `source`."""
    try:
        return KeyFile.model_validate(yaml.safe_load(data.decode()))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise KeysError(f"{source}: got text that is not YAML; expected a keys file") from None
    except ValidationError as error:
        raise KeysError(
            f"{source}: got a wrong keys file: {_findings(error)}; expected keys: [{{id: team-a, "
            "sha256: ...}]"
        ) from None


def _findings(error: ValidationError) -> str:
    """What is wrong and where, without values: somebody may have put a key where its hash or id
    belongs."""
    found = error.errors(include_input=False, include_context=False)
    message = "; ".join(explain(f, ".".join(map(str, f["loc"])) or "file") for f in found)
    return re.sub(rf"{PREFIX}[\w-]+", f"{PREFIX}...", message)


# --- how often --------------------------------------------------------------------------------
@dataclass
class _Bucket:
    tokens: float
    filled_s: float


class Limiter:
    """A token bucket for each key. For one event loop; each process counts on its own."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_buckets: int = _MAX_BUCKETS
    ):
        """clock: in seconds. max_buckets: of more keys the one used longest ago is forgotten."""
        self._clock, self._max_buckets = clock, max_buckets
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: Key, cost: float = 1) -> None:
        """Count a request that costs as much as `cost` requests. Raises Problem 429, and then
        counts nothing.

        A cost beyond `burst` passes when the bucket is full, and is paid off afterwards.
        """
        if key.requests_per_minute is None:
            return
        per_s = key.requests_per_minute / 60
        bucket = self._filled(key, per_s)
        wait_s = (min(cost, key.burst) - bucket.tokens) / per_s
        if wait_s > _ROUNDING_S:
            raise _too_often(key, math.ceil(wait_s - _ROUNDING_S / 2), bucket.tokens)
        bucket.tokens -= cost

    def _filled(self, key: Key, per_s: float) -> _Bucket:
        """The key's bucket, with the tokens that have flowed in since the last request."""
        now_s = self._clock()
        bucket = self._buckets.setdefault(key.id, _Bucket(key.burst, now_s))
        flowed = (now_s - bucket.filled_s) * per_s
        bucket.tokens, bucket.filled_s = min(key.burst, bucket.tokens + flowed), now_s
        self._buckets.move_to_end(key.id)
        if len(self._buckets) > self._max_buckets:  # keys that were revoked long ago
            self._buckets.popitem(last=False)
        return bucket


_ROUNDING_S = 1e-6
"""Tolerance for float sums: a caller who has waited as long as a 429 says passes."""


def _too_often(key: Key, wait_s: int, tokens: float) -> Problem:
    wait_s = max(1, wait_s)
    return Problem(
        429,
        "rate-limited",
        f"key {key.id}: got more than {key.requests_per_minute:g} requests per minute; try again "
        f"in {wait_s} s",
        headers={"Retry-After": str(wait_s)},
        limit=key.requests_per_minute,
        remaining=max(0, math.floor(tokens)),
    )


# --- new keys ---------------------------------------------------------------------------------
def new_key(id: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    """A new key, and its entry in a keys file. Raises KeysError.

    settings: the fields of Key.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        entry = KeyEntry(id=id, sha256=_digest(secret), **settings)
    except ValidationError as error:
        raise KeysError(f"key {id!r}: {_findings(error)}") from None
    return secret, entry.model_dump(exclude_unset=True)


def add_key(uri: str, id: str, **settings: Any) -> str:
    """Add a new key to the keys file, which is created where it is missing. Returns the key.

    Raises KeysError for an id that the file has already and for a malformed file, and StorageError.
    """
    secret, entry = new_key(id, **settings)
    store, name = split_uri(uri)
    with _turn(store, name):
        try:
            text = store.read(name).decode()
        except MissingKeyError:
            text = ""
        keys = parse_keys(text.encode(), uri).keys if text.strip() else []
        if id in (key.id for key in keys):
            raise KeysError(f"{uri}: got id {id!r}, which has a key there; expected a new id")
        store.write(name, _with_entry(text, entry).encode())
    return secret


@contextmanager
def _turn(store: Store, name: str, patience_s: float = 10.0) -> Iterator[None]:
    """One writer at a time, since stores cannot replace an object only where it is unchanged."""
    lock, give_up_s = f"{name}.lock", time.monotonic() + patience_s
    while not store.write_if_absent(lock, secrets.token_bytes(16)):
        if time.monotonic() > give_up_s:
            raise KeysError(
                f"{store.uri}/{lock}: got a lock of another writer for {patience_s:g} s; expected "
                "none. Delete it if nobody is adding a key"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        store.delete(lock)


def _with_entry(text: str, entry: dict[str, Any]) -> str:
    """The file with one entry more. Where its form allows, the entry is appended, so that comments
    stay."""
    wanted = (yaml.safe_load(text) or {"keys": []})["keys"] + [entry]
    lines = yaml.safe_dump([entry], sort_keys=False).splitlines()
    for indent in ("", "  ", "    "):
        longer = "\n".join([text.rstrip("\n"), *(indent + line for line in lines), ""])
        try:
            if yaml.safe_load(longer) == {"keys": wanted}:
                return longer
        except yaml.YAMLError:
            continue
    return yaml.safe_dump({"keys": wanted}, sort_keys=False)
