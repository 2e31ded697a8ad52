"""The GPU bench on the tiny base's sizes, on a CPU: everything but the size and the GPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bs_ray.bench.gpu import rows as gpu_rows
from bs_ray.bench.gpu.run import Put, Row, gpu
from bs_ray.train.engines import PlainEngine

WITHOUT_RAY = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "s3fs", "botocore", "aiobotocore", "fastapi"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Absent())
from bs_ray.cli import main
main()
"""


def run(rows: str, out: Path) -> dict:
    """The command in a process of its own, in which neither Ray nor s3fs can be imported."""
    options = ["--base", "tiny", "--px", "64", "--device", "cpu", "--json", str(out)]
    command = [sys.executable, "-c", WITHOUT_RAY, "bench", "gpu", *options, "--rows", rows]
    subprocess.run(command, check=True, timeout=600)
    found: dict = json.loads(out.read_text())
    return found


def test_it_runs_where_neither_ray_nor_s3fs_is_installed(tmp_path: Path) -> None:
    found = run("resume torch, engine", tmp_path / "gpu.json")
    assert not found["ended"]
    assert found["rows"]["resume torch"]["torch"]["bit_equal"]
    assert found["rows"]["engine"]["8 at once"]["company"] == 8


@pytest.mark.slow
def test_every_row_has_its_figures(tmp_path: Path) -> None:
    rows = [row.name for row in gpu_rows.ROWS if row.name != "compile"]
    found = run(",".join(rows), tmp_path / "gpu.json")
    assert not found["ended"] and list(found["rows"]) == rows
    for stage in (0, 2, 3):
        assert found["rows"][f"resume ZeRO {stage}"][f"ZeRO {stage}"]["bit_equal"]
    assert found["rows"]["plan"]["whole_method, 64 px"]["plan_over_peak"] > 0


def test_a_row_that_fails_or_hangs_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(bench: object, put: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    def hangs(bench: object, put: Put) -> None:
        put("first", ms=1.0)
        while True:
            time.sleep(0.01)

    def measures(bench: object, put: Put) -> None:
        put("case", ms=2.0)

    rows = (
        Row("fails", 0, fails),
        Row("hangs", 0, hangs),
        Row("measures", 0, measures),
        Row("takes long", 60, measures),
    )
    monkeypatch.setattr(gpu_rows, "ROWS", rows)
    out = tmp_path / "gpu.json"
    found = gpu(print, base="tiny", px=64, device="cpu", seconds=15, json_file=out)
    assert found["rows"] == {"hangs": {"first": {"ms": 1.0}}, "measures": {"case": {"ms": 2.0}}}
    assert found["ended"]["fails"] == "failed: RuntimeError: no kernel for this"
    assert found["ended"]["hangs"].startswith("stopped")
    assert found["ended"]["takes long"].startswith("skipped")
    assert json.loads(out.read_text())["rows"] == found["rows"]


def test_unknown_rows_are_named() -> None:
    with pytest.raises(ValueError, match="got fly; expected some of bare forward"):
        gpu(print, base="tiny", px=64, device="cpu", only=["fly"])


def test_a_loaded_state_leaves_adams_step_where_the_optimizer_put_it() -> None:
    """Fused Adam keeps it on its parameter's device and refuses one that is elsewhere."""
    module = torch.nn.Linear(2, 1)
    engine = PlainEngine(module, lr=0.1)
    for _ in range(3):
        engine.backward_and_step(engine(torch.ones(1, 2)).sum())
    state = engine.state()
    engine.backward_and_step(engine(torch.ones(1, 2)).sum())
    own = [moments["step"] for moments in engine.optimizer.state.values()]
    engine.load_state(state)
    now = [moments["step"] for moments in engine.optimizer.state.values()]
    assert all(a is b for a, b in zip(own, now, strict=True)) and float(now[0]) == 3
