"""What a person sees: progress, figures for Prometheus, pictures, a report, an estimate."""

import io
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from bs_ray.batch import board as board_module
from bs_ray.batch.board import Board, Metrics
from bs_ray.batch.estimate import estimate, size_of
from bs_ray.batch.lease import JobTakenError, Lease, earlier_runs
from bs_ray.batch.prepare import prepare
from bs_ray.batch.run import edit
from bs_ray.cli import main
from bs_ray.storage import Store
from bs_ray.tiny.drawn import write_wild
from tests.batch.conftest import MakeJob, run


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return {
        "".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_sizes_are_read_at_a_glance() -> None:
    sizes = [0, 999, 12_400, 1_000_000, 64_000_000_000]
    assert [size_of(n) for n in sizes] == ["0 bytes", "999 bytes", "12.4 kB", "1 MB", "64 GB"]


def test_a_job_leaves_pictures_a_report_and_counts_that_agree(
    ray_cluster: None,
    make_job: MakeJob,
    brighter: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_wild(Store(tmp_path / "in"), photos=12, broken=3, seed=0)
    last: dict[str, float] = {}
    close = Metrics.close

    def scrape_and_close(metrics: Metrics) -> None:
        last.update(scraped(metrics.port))
        close(metrics)

    monkeypatch.setattr(Metrics, "close", scrape_and_close)
    monkeypatch.setattr(board_module, "_SHEET_EVERY_S", 0.1)
    job = make_job(cost_per_hour=3.6)
    summary, printed = run(job, metrics_port=0)
    assert last["bs_ray_edit_images_totaldone"] == summary.edited == 9
    assert last["bs_ray_edit_images_totalquarantined"] == summary.quarantined == 3
    assert last["bs_ray_edit_images_expected"] == summary.inputs == 12
    assert last["bs_ray_edit_outputs_total"] == summary.outputs == 9
    assert last["bs_ray_edit_shards_total"] == summary.shards == 3
    assert last["bs_ray_edit_stage_busy_seconds_totaledit"] > 0
    assert (
        "12 of 12, 3 quarantined," in printed and "cost 0." in printed and "busy: fetch" in printed
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>12</b> photos = <b>9</b> edited" in page and "decode: truncated" in page
    assert "data:image/png;base64," in page
    with Image.open(tmp_path / "out" / "_bs_ray" / "latest.png") as latest:
        assert latest.width > 800


def test_a_job_killed_before_its_reports_gets_them(
    ray_cluster: None, make_job: MakeJob, tmp_path: Path
) -> None:
    write_wild(Store(tmp_path / "in"), photos=4, broken=0, seed=0)
    job = make_job(sliders={"smile": 0.0})
    run(job)
    (run_before,) = earlier_runs(Store(job.output))
    for key in ("manifest.parquet", "summary.json", "report.html"):
        Store(job.output).delete(key)
    summary, _ = run(job)
    assert not summary.nothing_to_do and summary.skipped_shards == summary.shards
    assert "<b>4</b> photos" in (tmp_path / "out" / "report.html").read_text()
    assert earlier_runs(Store(job.output)) == [run_before]


def test_counts_go_on_where_an_earlier_run_stopped(
    without_ray: None, make_job: MakeJob, tmp_path: Path
) -> None:
    write_wild(Store(tmp_path / "in"), photos=8, broken=2, seed=0)
    job = make_job(sliders={"smile": [0, 1]})
    run(job)
    prepared, metrics = prepare(job, Console(file=io.StringIO())), Metrics(0)
    try:
        Board(Console(file=io.StringIO()), prepared, [0, 1], metrics, lambda shards: None)
        found = scraped(metrics.port)
    finally:
        metrics.close()
    assert found["bs_ray_edit_images_totaldone"] == 6
    assert found["bs_ray_edit_images_totalquarantined"] == 2
    assert found["bs_ray_edit_outputs_total"] == 12


def test_the_second_driver_leaves_and_says_so(make_job: MakeJob, tmp_path: Path) -> None:
    write_wild(Store(tmp_path / "in"), photos=2, broken=0, seed=0)
    job, text = make_job(), io.StringIO()
    with (
        Lease(Store(job.output), print),
        pytest.raises(JobTakenError, match="is at work on this job; leaving it to it"),
    ):
        edit(job, console=Console(file=text, width=200))
    assert "waiting up to 6 s" in text.getvalue()
    assert not Store(job.output).list("images/")


def test_the_command_leaves_it_with_exit_code_0(
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_wild(Store(tmp_path / "in"), photos=2, broken=0, seed=0)
    job, path = make_job(), tmp_path / "job.yaml"
    path.write_text(job.model_dump_json())
    monkeypatch.setattr("sys.argv", ["bs-ray", "edit", str(path)])
    with Lease(Store(job.output), print), pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (None, 0)
    printed = " ".join(capsys.readouterr().out.split())
    assert "is at work on this job; leaving it to it" in printed


def test_a_plan_is_a_table(
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_wild(Store(tmp_path / "in"), photos=9, broken=0, seed=0)
    path = tmp_path / "job.yaml"
    path.write_text(make_job().model_dump_json())
    words = ["bs-ray", "edit", str(path), "--plan", "--limit", "8", "--json", str(tmp_path / "f")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "8 in images" in printed and "images/s a worker, measured on this machine" in printed
    assert json.loads((tmp_path / "f").read_text())["photos"] == 8
    assert not (tmp_path / "out").exists()


def test_a_superseded_driver_stops(
    ray_cluster: None,
    make_job: MakeJob,
    brighter: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bs_ray.batch import lease
    from bs_ray.batch.prepare import EditFailed

    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    write_wild(Store(tmp_path / "in"), photos=40, broken=0, seed=0)
    job = make_job()
    output, failed = Store(job.output), []

    def drive() -> None:
        try:
            run(job)
        except EditFailed as error:
            failed.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    deadline = time.monotonic() + 120
    while not output.list("_bs_ray/shards/") and time.monotonic() < deadline:
        time.sleep(0.01)
    output.write("_bs_ray/drivers/00002.json", json.dumps({"host": "h", "pid": 1}).encode())
    thread.join()
    assert failed and "another driver has taken the job over" in str(failed[0])


def test_an_estimate_writes_nothing(make_job: MakeJob, tmp_path: Path) -> None:
    write_wild(Store(tmp_path / "in"), photos=20, broken=2, seed=0)
    Store(tmp_path / "in").write("notes.txt", b"")
    job = make_job(sliders={"smile": [-1, 1]}, cost_per_hour=2.0, workers=2)
    found: Any = estimate(job, Console(file=io.StringIO()))
    assert (found.photos, found.edits, found.shards, found.done_shards) == (20, 2, 5, 0)
    assert (found.format, found.ignored) == ("images", 1)
    assert found.bytes == sum(p.stat().st_size for p in (tmp_path / "in").rglob("*.jpg"))
    assert found.images_per_s > 0
    assert found.hours == pytest.approx(20 / found.images_per_s / 2 / 3600)
    assert found.cost == pytest.approx(2 * found.hours)
    assert not (tmp_path / "out").exists()
