"""Keys stay below their store's root, and a root has one spelling."""

import os

from bs_ray.storage.errors import StorageError


def normal_uri(uri: str) -> str:
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(
                f"{uri!r} has no bucket. Expected s3://bucket or s3://bucket/prefix."
            )
        prefix = prefix.strip("/")
        return f"s3://{bucket}/{checked_key(prefix)}" if prefix else f"s3://{bucket}"
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


def checked_key(key: str) -> str:
    if not is_key(key):
        raise StorageError(
            f"{key!r} is not a key. Expected names joined by single slashes, relative, without "
            "'.', '..', backslash or NUL."
        )
    return key
