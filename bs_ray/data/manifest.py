"""The fixed input of an edit job: photos listed once, sorted, cut into shards.

One Parquet object holds the list and, in its metadata, the settings that decide what a photo
becomes. It is written before any work, on condition that there is none: so a rerun has the same
input in the same shards, and another job cannot mix its photos into this output.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.data import INPUT_SCHEMA, EmptyInputError, ImageRow, QuarantinedRow, quarantined
from bs_ray.storage import (
    AccessError,
    Entry,
    MissingBucketError,
    MissingKeyError,
    StorageError,
    Store,
    UnreachableError,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
INPUT_KEY = "_bs_ray/input.parquet"
_META = b"bs_ray"


class JobChangedError(ValueError):
    """The output prefix belongs to a job with other settings; the message says which."""


@dataclass(frozen=True)
class Manifest:
    """What an output prefix was made from."""

    keys: list[str]
    """Every input, sorted by the bytes of its key."""
    shards: int
    ignored: int
    """Files below the input prefix that do not look like photos."""
    settings: dict[str, Any]
    """What decides an output's pixels, as JSON values."""
    sha256: str
    """Of the listing: keys, sizes and tags."""


def read_manifest(output: Store) -> Manifest | None:
    """The manifest under this output prefix, or None before the first run."""
    try:
        data = output.read(INPUT_KEY)
    except MissingKeyError:
        return None
    table = pq.read_table(BytesIO(data))
    meta = json.loads(table.schema.metadata[_META])
    return Manifest(
        keys=table["key"].to_pylist(),
        shards=table["shard"][-1].as_py() + 1,
        ignored=meta["ignored"],
        settings=meta["settings"],
        sha256=meta["sha256"],
    )


def open_manifest(
    source: Store, output: Store, settings: dict[str, Any], shard_images: int
) -> Manifest:
    """The output's manifest; the first run lists `source` and writes it.

    Raises EmptyInputError for a source without photos and JobChangedError where the output was
    begun with other settings.
    """
    found = read_manifest(output)
    if found is None:
        output.write_if_absent(INPUT_KEY, _listing(source, settings, shard_images))
        found = read_manifest(output)  # ours, or that of a rival who was first
    assert found is not None
    check_settings(found.settings, settings, output)
    return found


def check_settings(before: dict[str, Any], now: dict[str, Any], output: Store) -> None:
    """Raise JobChangedError unless both are equal."""
    old, new = _flat(before), _flat(now)
    changed = [
        f"{name}: got {new.get(name)!r}, expected {old.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise JobChangedError(
            f"{output.uri} was begun with other settings ({'; '.join(changed)}). Go back to those "
            "to finish it, or choose another output"
        )


def read_shard(output: Store, shard: int) -> list[ImageRow]:
    """The photos of one shard; each node downloads the manifest once."""
    with pq.ParquetFile(output.local_copy(INPUT_KEY)) as file:
        return file.read_row_group(shard).to_pylist()


def fetch(source: Store, row: ImageRow, max_bytes: int) -> bytes | QuarantinedRow:
    """The photo's bytes. What is wrong with this photo alone quarantines it.

    Raises StorageError when the store itself does not answer or lets us in no longer: then every
    photo would fail, and a rerun can still succeed.
    """
    key = row["key"]
    if row["size"] > max_bytes:
        reason = f"too large: got {row['size']} bytes; expected at most {max_bytes} (max_bytes)"
        return quarantined(key, "fetch", reason)
    try:
        data = source.read(key)
    except MissingKeyError:
        return quarantined(key, "fetch", "missing: it was there when the input was listed")
    except (UnreachableError, MissingBucketError):
        raise
    except AccessError:
        source.check()
        return quarantined(key, "fetch", "forbidden: expected the right to read it")
    except StorageError as error:
        return quarantined(key, "fetch", f"unreadable: {error}")
    if len(data) != row["size"]:
        reason = f"changed: got {len(data)} bytes; expected {row['size']}, as listed"
        return quarantined(key, "fetch", reason)
    return data


def is_photo(key: str) -> bool:
    """Whether a key's suffix is one of SUFFIXES."""
    return key.lower().endswith(SUFFIXES)


def _listing(source: Store, settings: dict[str, Any], shard_images: int) -> bytes:
    """The manifest's file. Equal listings give equal bytes."""
    entries = source.list()
    photos = [entry for entry in entries if is_photo(entry.key)]
    if not photos:
        raise EmptyInputError(
            f"{source.uri}: got {len(entries)} files, none of them a photo; expected at least one "
            f"of {', '.join(SUFFIXES)} at any depth. Check the prefix"
        )
    table = pa.Table.from_pylist(
        [
            {"key": p.key, "size": p.size, "etag": p.etag, "shard": index // shard_images}
            for index, p in enumerate(photos)
        ],
        schema=INPUT_SCHEMA,
    )
    meta = {
        "ignored": len(entries) - len(photos),
        "settings": settings,
        "sha256": _digest(photos),
    }
    table = table.replace_schema_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    file = BytesIO()
    pq.write_table(table, file, row_group_size=shard_images, compression="zstd")
    return file.getvalue()


def _digest(photos: list[Entry]) -> str:
    lines = (json.dumps([photo.key, photo.size, photo.etag]) for photo in photos)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
