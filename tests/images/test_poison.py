"""Whatever lies in a bucket: one row for each file, always the same, in bounded time and memory."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from bs_ray.config import EditJob
from bs_ray.images.decode_pool import shared_decode_pool
from bs_ray.images.rows import DecodedRow, QuarantinedRow, is_quarantined
from tests.images.poison import NotToBeHad, Photo, mutated, pillow_images, sound_photos

DECODE_S, DECODE_MB, MAX_PIXELS = (
    EditJob.model_fields[name].default for name in ("decode_s", "decode_mb", "max_pixels")
)
SHARD = 64  # photos that a job decodes at once
_LARGEST_BYTES = 30_000  # of Pillow's images, to damage: small files run through more damage


@pytest.fixture(scope="module", autouse=True)
def _no_decoders_left() -> Iterator[None]:
    yield
    shared_decode_pool(DECODE_S, DECODE_MB).close()
    shared_decode_pool.cache_clear()


@pytest.fixture(scope="session")
def from_pillow(request: pytest.FixtureRequest) -> list[Photo]:
    try:
        return pillow_images(request.config.cache.mkdir("pillow-source"))
    except NotToBeHad as why:
        pytest.skip(f"needs Pillow's source distribution: {why}")


@pytest.fixture(scope="session")
def sound() -> list[Photo]:
    return sound_photos()


def test_sound_photos_are_sound(sound: list[Photo]) -> None:
    refused = {"moving.png", "float.tif", "pages.tif"}
    for row in decoded_twice(sound):
        assert is_quarantined(row) == (row["key"] in refused), row


def test_every_test_image_of_pillow(from_pillow: list[Photo]) -> None:
    assert len(from_pillow) > 1000
    rows = decoded_twice(from_pillow)
    kinds = kinds_of(rows)
    assert kinds["decoded"] > 400 and kinds["fatal"] == kinds["too slow"] == 0, kinds


def test_damaged_photos(sound: list[Photo], from_pillow: list[Photo]) -> None:
    suffixes = (".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".mpo")
    small = [
        (f"pillow/{name.replace('/', '-')}", data)
        for name, data in from_pillow
        if name.endswith(suffixes) and 0 < len(data) <= _LARGEST_BYTES
    ]
    # Half of them ours: there are many more of theirs, mostly of the same kind.
    photos = [*sound * (len(small) // len(sound)), *small]
    kinds = kinds_of(decoded_twice(list(mutated(photos, 10_000, seed=0))))
    assert {"decoded", "damaged", "truncated", "not an image"} <= kinds.keys(), kinds


def kinds_of(rows: Sequence[DecodedRow | QuarantinedRow]) -> Counter[str]:
    return Counter(
        row["reason"].partition(":")[0] if is_quarantined(row) else "decoded" for row in rows
    )


def decoded_twice(photos: Sequence[Photo]) -> list[DecodedRow | QuarantinedRow]:
    """Every photo's row, after checking all that holds for any photo."""
    assert len({key for key, _ in photos}) == len(photos)
    with bounded_memory():
        rows = list(decoded(photos))
        # The other way round: in other company, and by decoders of another age.
        again = list(decoded(photos[::-1]))[::-1]
    for (key, data), row, repeat in zip(photos, rows, again, strict=True):
        check(row, key, data)
        assert fingerprint(row) == fingerprint(repeat), key
    return rows


def decoded(photos: Sequence[Photo]) -> Iterator[DecodedRow | QuarantinedRow]:
    pool = shared_decode_pool(DECODE_S, DECODE_MB)
    for first in range(0, len(photos), SHARD):
        begun = time.monotonic()
        rows = pool.decode(photos[first : first + SHARD], max_pixels=MAX_PIXELS)
        slow = kinds_of(rows)["too slow"]  # once in company, once alone
        assert time.monotonic() - begun < DECODE_S * (1 + 2 * slow)
        yield from rows


def check(row: DecodedRow | QuarantinedRow, key: str, data: bytes) -> None:
    assert row["key"] == key
    if is_quarantined(row):
        assert set(row) == {"key", "stage", "reason"} and row["stage"] == "decode"
        kind, colon, details = row["reason"].partition(": ")
        assert kind and colon and details and row["reason"].isprintable(), row
        return
    pixels, alpha = row["pixels"], row["alpha"]
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and pixels.size
    assert alpha is None or (alpha.dtype == np.uint8 and alpha.shape == pixels.shape[:2])
    assert row["sha256"] == hashlib.sha256(data).hexdigest()


def fingerprint(row: DecodedRow | QuarantinedRow) -> dict:
    """The row, with its arrays as hashes."""
    hashes = {
        name: (value.shape, hashlib.sha256(value.tobytes()).hexdigest())
        for name, value in row.items()
        if isinstance(value, np.ndarray)
    }
    return {**row, **hashes}


@contextmanager
def bounded_memory() -> Iterator[None]:
    """The decoders stay below their limit all along."""
    done, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):  # a look at all processes each time
            peak = max(peak, *map(resident, psutil.Process().children()), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert 0 < peak < DECODE_MB << 20


def resident(process: psutil.Process) -> int:
    """Bytes, of a decoder."""
    try:
        return (
            process.memory_info().rss if "bs_ray.images.decode_worker" in process.cmdline() else 0
        )
    except psutil.Error:  # it has just ended
        return 0
