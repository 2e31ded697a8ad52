"""A picture that breaks the decoder costs itself, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from bs_ray.images.decode_pool import DecodePool, DecoderError
from bs_ray.images.rows import is_quarantined

Save = Callable[..., bytes]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Decoders in whose processes certain bytes hang, crash or eat memory."""
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


HOSTILE = """
import os, signal, sys, time
def wrap():
    from PIL import Image
    real = Image.open
    def fake(file, *args, **kwargs):
        if file.getvalue() == b"hang":
            time.sleep(60)
        if file.getvalue() == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if file.getvalue() == b"memory":
            bytearray(4 << 30)
        return real(file, *args, **kwargs)
    Image.open = fake
if "bs_ray.images.decode_worker" in sys.orig_argv:
    wrap()
"""


@pytest.fixture
def pool(hostile: None) -> Iterator[DecodePool]:
    pool = DecodePool(seconds=2.0, memory_mb=1024)
    yield pool
    pool.close()


def test_what_breaks_the_decoder_is_named_and_the_rest_goes_on(
    pool: DecodePool, gradient: np.ndarray, saved: Save
) -> None:
    good = saved(Image.fromarray(gradient), "PNG")
    photos = [
        ("a.png", good),
        ("b.png", b"hang"),
        ("c.png", b"crash"),
        ("d.png", good),
        ("e.png", b"memory"),
        ("f.png", b""),
        ("g.png", good),
    ]
    rows = pool.decode(photos, max_pixels=10_000)
    assert [row["key"] for row in rows] == [key for key, _ in photos]
    reasons = [row["reason"].partition(":")[0] if is_quarantined(row) else "" for row in rows]
    assert reasons == ["", "too slow", "fatal", "", "too large", "empty", ""]
    assert all(np.array_equal(rows[i]["pixels"], gradient) for i in (0, 3, 6))  # type: ignore[typeddict-item]


def test_a_decoder_that_ends_while_idle_costs_no_photo(gradient: np.ndarray, saved: Save) -> None:
    photos = [(f"{i}.png", saved(Image.fromarray(gradient), "PNG")) for i in range(20)]
    pool = DecodePool(seconds=20.0, memory_mb=1024)
    for _ in range(2):
        rows = pool.decode(photos, max_pixels=10_000)
        assert [row["key"] for row in rows if not is_quarantined(row)] == [k for k, _ in photos]
        for process in psutil.Process().children():
            with suppress(psutil.Error):  # another test's child, gone meanwhile
                if "bs_ray.images.decode_worker" in process.cmdline():
                    process.kill()
    pool.close()


def test_a_decoder_that_does_not_start_is_no_photos_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no room for it')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DecoderError, match=r"(?s)got exit code 1; .*It said: .*no room for it"):
        DecodePool(seconds=2.0, memory_mb=1024).decode([("a", b"")], max_pixels=9)


def test_a_file_in_the_users_folder_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gradient: np.ndarray, saved: Save
) -> None:
    """Named like a module of Python's or of Pillow's, and on the path of whoever decodes."""
    for name in ("inspect", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pool = DecodePool(seconds=20.0, memory_mb=1024)
    [row] = pool.decode([("a", saved(Image.fromarray(gradient), "PNG"))], max_pixels=10_000)
    pool.close()
    assert not is_quarantined(row)


ORPHAN = """
import os, signal, threading, time
from bs_ray.images.decode_pool import DecodePool
if __name__ == "__main__":
    pool = DecodePool(5, 1024)
    threading.Thread(target=pool.decode, args=([("a", b"hang"), ("b", b"")],),
                     kwargs={"max_pixels": 9}, daemon=True).start()
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_decoders_do_not_outlive_a_killed_worker(hostile: None, tmp_path: Path) -> None:
    mark = f"orphan-{os.getpid()}"
    script = tmp_path / "worker.py"
    script.write_text(ORPHAN)
    worker = subprocess.run([sys.executable, script], env=os.environ | {"BS_RAY_MARK": mark})
    assert worker.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while left := marked(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def marked(mark: str) -> list[int]:
    """Processes with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
