"""Trackers: where the files end, what a restart repeats, and that no failure stops training."""

import io
import os
import sys
import types
from collections import defaultdict

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from bs_ray.storage import Store
from bs_ray.train.watching.tracking import check_tracking, open_trackers
from tests.train.conftest import make_job

STRIP = Image.new("RGB", (32, 16), "red")


def events(data: bytes) -> list[Event]:
    """An event file is a row of records: length u64, its checksum, the event, its checksum."""
    stream, found = io.BytesIO(data), []
    while head := stream.read(12):
        found.append(Event.FromString(stream.read(int.from_bytes(head[:8], "little"))))
        stream.read(4)
    return found


def scalars(store: Store) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of all files: a purge drops earlier points from its step on."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in sorted(store.list(), key=lambda e: e.key.rpartition(".v2.")[2]):
        for event in events(store.read(entry.key)):
            if event.session_log.status:
                for curve in curves.values():
                    for step in [s for s in curve if s >= event.step]:
                        del curve[step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    assert event.step not in curves[value.tag], "a step twice"
                    curves[value.tag][event.step] = round(value.simple_value, 3)
    return curves


def job_in(folder, **tracking):
    return make_job(runs=str(folder), tracking=tracking)


def test_events_and_previews_end_in_the_runs_folder(tmp_path) -> None:
    tracker = open_trackers(job_in(tmp_path), "smile-1")
    for step in (1, 2):
        tracker.log(step, {"triplet": step / 10})
    tracker.picture(2, "smile", STRIP)
    run = Store(str(tmp_path)).join("smile-1")
    assert [e.key for e in run.list("previews/")] == ["previews/step-000002-smile.png"]
    tracker.flush()
    assert scalars(run.join("tensorboard")) == {"triplet": {1: 0.1, 2: 0.2}}
    tracker.log(3, {"triplet": 0.3})
    tracker.close()
    assert scalars(run.join("tensorboard")) == {"triplet": {1: 0.1, 2: 0.2, 3: 0.3}}


def test_a_resumed_run_repeats_no_step(tmp_path) -> None:
    job, run = job_in(tmp_path), Store(str(tmp_path)).join("r")
    first = open_trackers(job, "r")
    for step in (1, 2, 3):
        first.log(step, {"loss": step})
    first.flush()  # and then the run is killed
    second = open_trackers(job, "r", step=2)
    for step in (3, 4):
        second.log(step, {"loss": 10 * step})
    second.close()
    first.close()
    assert len(run.list("tensorboard/")) == 2
    assert scalars(run.join("tensorboard")) == {"loss": {1: 1, 2: 2, 3: 30, 4: 40}}


def test_a_failing_tracker_warns_once_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    tracker = open_trackers(job_in(tmp_path), "r")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "previews").write_text("in the way")
    with pytest.warns(
        UserWarning, match=r"tracking: previews failed \(.*training goes on"
    ) as record:
        tracker.picture(1, "smile", STRIP)
        tracker.picture(2, "smile", STRIP)
    assert len(record) == 1
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert scalars(Store(str(tmp_path / "r" / "tensorboard"))) == {"loss": {1: 1}}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_refused(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    expected = rf"tracking.{name}: got 'x', but {name} is not installed; .*pip install {name}"
    with pytest.raises(ValueError, match=expected):
        check_tracking(job_in(tmp_path, **{name: "x"}))


class FakeMlflow:
    """The part of MlflowClient that is used; its server keeps what it got."""

    def __init__(self) -> None:
        self.metrics: dict[str, list] = defaultdict(list)
        self.images: list[str] = []
        self.runs: list = []

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "7"

    def search_runs(self, experiments, where):
        return self.runs

    def create_run(self, experiment, run_name):
        self.runs = [types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))]
        return self.runs[0]

    def get_metric_history(self, run, name):
        return list(self.metrics[name])

    def log_metric(self, run, name, value, step):
        self.metrics[name].append(types.SimpleNamespace(step=step, value=value))

    def log_image(self, run, image, artifact_file):
        self.images.append(artifact_file)

    def set_terminated(self, run):
        pass


def test_mlflow_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    server = FakeMlflow()
    fake = types.SimpleNamespace(MlflowClient=lambda tracking_uri: server)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    job = job_in(tmp_path, mlflow="http://server", tensorboard=False)
    for step in (0, 2):
        tracker = open_trackers(job, "r", step)
        for now in range(step + 1, step + 4):
            tracker.log(now, {"loss": float(now)})
        tracker.picture(step + 1, "smile", STRIP)
        tracker.close()
    assert [point.step for point in server.metrics["loss"]] == [1, 2, 3, 4, 5]
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"  # or MLflow 3 refuses a folder
    assert server.images[0] == "previews/step-000001-smile.png" and len(server.runs) == 1


def test_wandb_takes_no_step_twice(tmp_path, monkeypatch) -> None:
    logged: list[tuple[int, dict]] = []
    run = types.SimpleNamespace(step=3, finish=lambda: None)
    run.log = lambda numbers, step: logged.append((step, numbers))
    asked: dict = {}
    fake = types.SimpleNamespace(init=lambda **how: asked.update(how) or run, Image=lambda i: i)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = open_trackers(job_in(tmp_path, wandb="faces"), "smile-1", step=1)
    for step in (2, 3, 4):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert [step for step, _ in logged] == [3, 4]
    assert (asked["project"], asked["id"], asked["resume"]) == ("faces", "smile-1", "allow")
