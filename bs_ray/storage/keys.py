"""Checks on keys, which stay below their store's root, and one spelling for each root."""

import os

from bs_ray.storage.errors import StorageError


def normal_uri(uri: str) -> str:
    """A folder's absolute path, or `protocol://authority[/path]` without a slash at its end."""
    protocol, separator, place = uri.partition("://")
    if not separator or protocol in ("file", "local"):
        path = place if separator else uri
        if not path or "\0" in path:
            raise StorageError(f"{uri!r} is no folder. Expected a folder, or s3://bucket/prefix.")
        return os.path.abspath(os.path.expanduser(path))
    if protocol != "s3":
        _check_remote(protocol, place)
    authority, _, path = place.partition("/")
    path = path.strip("/")
    if not authority and (protocol == "s3" or not path):
        raise StorageError(
            f"{uri!r} has no bucket. Expected {protocol}://bucket or {protocol}://bucket/prefix."
        )
    return f"{protocol}://{authority}/{checked_key(path)}" if path else f"{protocol}://{authority}"


def _check_remote(protocol: str, place: str) -> None:
    from fsspec.registry import known_implementations, registry

    if ":" in place.partition("/")[0].rpartition("@")[0]:
        raise StorageError(  # it leaves out the URI, so that no password gets into a log
            f"Got a {protocol}:// URI with a password. Expected none, since job files and logs "
            f"are read by others: set FSSPEC_{protocol.upper()}_PASSWORD instead."
        )
    if protocol not in {*known_implementations, *registry}:
        raise StorageError(
            f"Cannot open {protocol}://{place}. Expected a folder, file:///folder, s3://bucket, "
            "gs://bucket, az://container or another protocol of fsspec."
        )


def is_key(key: str) -> bool:
    """Whether a key stays below its store's root and is the only spelling of its object."""
    parts = key.split("/")
    return not ("\0" in key or "\\" in key or any(p in ("", ".", "..") for p in parts))


def checked_key(key: str) -> str:
    """The key itself. Raises StorageError where `is_key` is false."""
    if not is_key(key):
        raise StorageError(
            f"{key!r} is not a key. Expected names joined by single slashes, relative, without "
            "'.', '..', backslash or NUL."
        )
    return key
