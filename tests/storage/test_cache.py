"""The cache keeps to its cap, and never takes a file from who is about to open it."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bs_ray.storage import StorageError, Store, cache
from bs_ray.storage.cache import cached

MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def three_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BS_RAY_CACHE_GB", "0.003")


def fill(path: Path) -> None:
    path.write_bytes(b"x" * MEGABYTE)


def unwanted(path: Path) -> None:
    raise AssertionError("downloaded again")


def age(path: Path, minutes: float) -> None:
    """Make as if a content was last used that long ago."""
    then = time.time() - 60 * minutes
    for file in path.parent.iterdir():
        os.utime(file, (then, then))


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*/*") if path.name != ".lock"}


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    paths = [cached(tmp_path, name, name, fill) for name in "abc"]
    for path, minutes in zip(paths, (50, 60, 40), strict=True):
        age(path, minutes)
    assert cached(tmp_path, "b", "b", unwanted) == paths[1]  # used now
    cached(tmp_path, "d", "d", fill)
    assert contents(tmp_path) == {"b", "c", "d"}
    assert not paths[0].parent.exists()  # its folder and lock too
    cached(tmp_path, "a", "a", fill)
    assert contents(tmp_path) == {"a", "b", "d"}


def test_what_was_used_in_the_last_minutes_stays(tmp_path: Path) -> None:
    for name in "abcd":
        age(cached(tmp_path, name, name, fill), 9)
    assert contents(tmp_path) == set("abcd")
    age(cached(tmp_path, "a", "a", unwanted), 11)
    cached(tmp_path, "e", "e", fill)
    assert contents(tmp_path) == set("bcde")


def test_who_has_a_file_open_reads_on(tmp_path: Path) -> None:
    path = cached(tmp_path, "a", "a", fill)
    with open(path, "rb") as file:
        age(path, 11)
        for name in "bcd":
            cached(tmp_path, name, name, fill)
        assert not path.exists()
        assert file.read() == b"x" * MEGABYTE


def _download_slowly(folder: Path, started: Callable[[], None], go_on: Callable[[], bool]) -> None:
    def download(path: Path) -> None:
        fill(path)
        age(path, 99)  # as a download that began long ago and has stalled
        started()
        go_on()

    cached(folder, "slow", "slow", download)


def test_another_process_downloads_undisturbed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    started, go_on = fork.Event(), fork.Event()
    other = fork.Process(target=_download_slowly, args=(tmp_path, started.set, go_on.wait))
    other.start()
    assert started.wait(10)
    for name in "abc":
        cached(tmp_path, name, name, fill)
    go_on.set()
    other.join(10)
    assert other.exitcode == 0 and "slow" in contents(tmp_path)


def _hammer(folder: Path, seed: int) -> None:
    cache._GRACE_S = 0.0
    draw = random.Random(seed)
    for _ in range(150):
        name = draw.choice("abcdefgh")
        path = cached(folder, name, name, lambda path, name=name: fill_with(path, name))
        try:
            assert path.read_bytes() == name.encode() * MEGABYTE
        except FileNotFoundError:
            assert cache._GRACE_S == 0.0  # the price of no grace, and no other


def fill_with(path: Path, name: str) -> None:
    path.write_bytes(name.encode() * MEGABYTE)


def test_removing_and_fetching_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_hammer, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(contents(tmp_path)) <= 3 + 4
    assert not [name for name in contents(tmp_path) if name.startswith(".bs-ray-tmp-")]


def test_other_files_beside_the_cache_stay(tmp_path: Path) -> None:
    Store(tmp_path).write("mine/big", b"x" * 9 * MEGABYTE)
    age(tmp_path / "mine/big", 9999)
    for name in "abcd":
        age(cached(tmp_path, name, name, fill), 20)
    assert (tmp_path / "mine/big").exists() and len(contents(tmp_path)) == 4


def test_stores_keep_to_the_cap(tmp_path: Path) -> None:
    store = Store(f"memory:/{tmp_path}")
    for name in "abcd":
        store.write(name, b"x" * MEGABYTE)
        path = store.local_copy(name, tmp_path)
        assert path.stat().st_size == MEGABYTE
        age(path, 20)
    assert contents(tmp_path) == set("bcd")


@pytest.mark.parametrize("cap", ["-1", "20GB", "nan"])
def test_a_cap_that_is_none(cap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BS_RAY_CACHE_GB", cap)
    with pytest.raises(StorageError, match=f"BS_RAY_CACHE_GB: got '{cap}'; expected gigabytes"):
        cached(tmp_path, "a", "a", unwanted)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"Cannot keep downloads in .*file.*with BS_RAY_CACHE"):
        cached(tmp_path / "file", "a", "a", unwanted)
