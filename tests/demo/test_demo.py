"""The quick demo, whole: what a newcomer sees first must work, and its figures must add up."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.demo, pytest.mark.ray]


def start(out: Path) -> subprocess.Popen:
    # A newcomer's: neither the tests' store, nor their one thread for each process.
    ours = re.compile("AWS_|OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if not ours.match(k)}
    return subprocess.Popen(
        [sys.executable, "-m", "bs_ray", "demo", "--quick", "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(1200)
def test_quick_demo(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process, started_s = start(out), time.monotonic()
    text, _ = process.communicate(timeout=1100)
    took_s = time.monotonic() - started_s
    assert process.returncode == 0, text[-3000:]
    for rays in ("constructor arguments", "graceful_shutdown", "(raylet)", "core_worker"):
        assert rays not in text
    for name in ("report.html", "contact-sheet.png"):
        assert (out / name).stat().st_size > 10_000
    written = json.loads((out / "metrics.json").read_text())

    people = [(row["portrait"], row["slider"]) for row in written["people"]["rows"]]
    portraits = ["collins.jpg", "hopper.jpg"]
    assert people == [(who, slider) for who in portraits for slider in ("old", "smiling")]
    page = (out / "report.html").read_text()
    assert page.index("<h2>People") < page.index("<h2>Run") < page.index("<h2>The drawn world")
    assert page.count("<figcaption>the photo") == 4

    assert written["base"]["vae_psnr_db"] >= 33
    smile = written["sliders"]["smile"]
    assert smile["zero_exact"] and smile["effect"] > 0.25
    assert smile["drift_other"] < smile["effect"] / 5
    low, high = smile["settings"]["faces"]["intervals"]["effect"]
    assert low < smile["effect"] < high
    batch = written["batch"]
    assert batch["inputs"] == batch["outputs"] + batch["quarantined"] == 48
    assert batch["quarantined"] == 4
    assert written["serve"]["max_abs_diff"] < 1e-4
    assert written["serve"]["mean_batch_rows"] > 1
    stages = dict(written["seconds"])
    total_s = stages.pop("total")
    assert total_s == pytest.approx(sum(stages.values()), abs=0.1) and total_s <= took_s
    assert list(stages) == ["ingest", "train", "edit", "serve", "evaluate"]


def test_ctrl_c_cleans_up(tmp_path: Path) -> None:
    process = start(tmp_path / "out")
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(family.children(recursive=True)) < 5:  # the store and Ray are up
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = family.children(recursive=True)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text[-2000:]
    assert "Run the same command again" in text
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
