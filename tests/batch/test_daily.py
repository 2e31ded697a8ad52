"""Day after day: a grown input becomes a new generation, and readers see whole generations."""

import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bs_ray.batch.estimate import estimate
from bs_ray.batch.external_sort import side_by_side
from bs_ray.batch.generations import last_whole, publish
from bs_ray.batch.input_list import pin_input_list, read_input_list
from bs_ray.batch.prepare import EditFailed, news, prepare, renewed
from bs_ray.cli import main
from bs_ray.images.formats import EmptyInputError
from bs_ray.storage import Store
from bs_ray.tiny.drawn import write_wild
from tests.batch.conftest import MakeJob, files, run
from tests.batch.reader import jsonl, manifest, read_as_others_do

QUIET = Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def _at_once(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bs_ray.batch.lease._WATCH_S", 0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name -> file: 20 photos, of which three are broken."""
    store = Store(tmp_path_factory.mktemp("photos"))
    write_wild(store, photos=20, broken=3, seed=0)
    return dict(sorted(files(store).items()))


Day = Callable[[], dict[str, str]]


@pytest.fixture
def first_day(photos: dict[str, bytes], tmp_path: Path) -> None:
    """The input holds the first 12 photos."""
    for key in list(photos)[:12]:
        Store(tmp_path / "in").write(key, photos[key])


@pytest.fixture
def second_day(photos: dict[str, bytes], tmp_path: Path) -> Day:
    """Changes the input, and says what each photo is then."""

    def happen() -> dict[str, str]:
        source, keys = Store(tmp_path / "in"), list(photos)
        sound = [key for key in keys[:12] if refusal(photos[key]) is None]
        changed, touched, gone = sound[0:4:3], sound[1], sound[2]
        for key, other in zip(changed, keys[-2:], strict=True):
            source.write(key, photos[other] if refusal(photos[other]) is None else photos[sound[5]])
        source.write(touched, photos[touched])  # another file with the same bytes
        source.delete(gone)
        for key in keys[12:16]:
            source.write(f"b/{key}", photos[key])
        fate = dict.fromkeys(keys[:12], "unchanged") | dict.fromkeys(changed, "changed")
        return fate | {gone: "gone"} | {f"b/{key}": "new" for key in keys[12:16]}

    return happen


def refusal(data: bytes) -> str | None:
    from bs_ray.images.decode import decode
    from bs_ray.images.rows import is_quarantined

    row = decode("k", data, max_pixels=64_000_000)
    return row["reason"] if is_quarantined(row) else None


# ------------------------------------------------------------------ what a new generation is


def test_new_and_changed_photos_become_a_generation(
    make_job: MakeJob, first_day: None, second_day: Day, photos: dict[str, bytes], tmp_path: Path
) -> None:
    job = make_job()
    first, _ = run(job)
    output = Store(job.output)
    assert (first.generation, first.inputs, first.changes["new"]) == (1, 12, 12)
    assert output.read("manifest.parquet") == output.read("generations/0001/manifest.parquet")
    before, first_rows = {e.key: e.etag for e in output.list()}, manifest(output)
    assert {row["generation"] for row in first_rows} == {1}

    fate = second_day()
    second, printed = run(job)
    assert second.changes == {"new": 4, "changed": 2, "lost": 0, "gone": 1, "unchanged": 9}
    assert "reading 1 photos that were written again" in printed
    assert "generation 2: 4 new, 2 changed, 1 gone, 9 unchanged" in printed
    assert second.inputs == 15 == second.edited + second.quarantined
    assert second.made["inputs"] == 6 and (second.shards, second.skipped_shards) == (2, 0)
    assert read_as_others_do(output) == 2

    after = {e.key: e.etag for e in output.list()}
    replaced = {key for key in before if after.get(key) != before[key]}
    copies = {"manifest.parquet", "quarantine.jsonl", "summary.json", "report.html"}
    assert replaced - {"_bs_ray/latest.png"} == copies
    for row in first_rows:  # who reads the first generation finds all of it
        data = output.read(row["output"])
        assert hashlib.sha256(data).hexdigest() == row["output_sha256"]

    rows, refused = manifest(output), jsonl(output, "quarantine.jsonl")
    every = {row["key"]: row for row in [*rows, *refused]}
    assert set(every) == {key for key, kind in fate.items() if kind != "gone"}
    assert sorted(every) == [row["key"] for row in sorted([*rows, *refused], key=_key)]
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    for key, row in every.items():
        assert row["generation"] == (1 if fate[key] == "unchanged" else 2), key
        if "output" in row:
            folder = "images@2" if fate[key] == "changed" else "images"
            assert row["output"] == f"{folder}/{key}"
            source = Store(job.input).read(key)
            assert row["sha256"] == hashlib.sha256(source).hexdigest()

    retired = {row["key"]: row for row in jsonl(output, "generations/0002/retired.jsonl")}
    assert {key: row["why"] for key, row in retired.items()} == {
        key: "gone" if kind == "gone" else "replaced"
        for key, kind in fate.items()
        if kind in ("gone", "changed")
    }
    assert all(row["output"] == f"images/{key}" for key, row in retired.items())
    page = output.read("report.html").decode()
    assert "<h2>Generations</h2>" in page and "spread over generation 2" in page

    third, printed = run(job)
    assert third.nothing_to_do and third.generation == 2 and "all 15 photos are done" in printed
    assert {e.key: e.etag for e in output.list()} == after


def _key(row: dict[str, Any]) -> str:
    return row["key"]


def test_a_quarantined_photo_is_tried_again_when_it_has_changed(
    make_job: MakeJob, first_day: None, photos: dict[str, bytes], tmp_path: Path
) -> None:
    job, source, output = make_job(), Store(tmp_path / "in"), Store(tmp_path / "out")
    run(job)
    bad = [row["key"] for row in jsonl(output, "quarantine.jsonl")]
    assert bad
    good = next(data for data in photos.values() if refusal(data) is None)
    source.write("zz.jpg", good)
    assert run(job)[0].made["inputs"] == 1  # the broken one stays what it is
    source.write(bad[0], good)
    third, _ = run(job)
    assert third.changes["changed"] == 1 and third.made["edited"] == 1
    assert bad[0] in [row["key"] for row in manifest(output)]
    assert read_as_others_do(output) == 3


def test_a_photo_that_is_gone_and_comes_back(
    make_job: MakeJob, first_day: None, photos: dict[str, bytes], tmp_path: Path
) -> None:
    job, source, output = make_job(), Store(tmp_path / "in"), Store(tmp_path / "out")
    run(job)
    gone, bad = manifest(output)[0]["key"], jsonl(output, "quarantine.jsonl")[0]["key"]
    source.delete(gone)
    source.delete(bad)
    second, _ = run(job)
    assert (second.inputs, second.changes["gone"], second.shards) == (10, 2, 0)
    retired = jsonl(output, "generations/0002/retired.jsonl")
    assert {row["key"]: row["output"] for row in retired} == {gone: f"images/{gone}", bad: ""}
    assert output.exists(f"images/{gone}")
    source.write(gone, photos[gone])
    third, _ = run(job)
    assert third.changes["new"] == 1
    assert manifest(output)[0]["output"] == f"images/{gone}"  # the same bytes are there already
    for entry in source.list():
        source.delete(entry.key)
    with pytest.raises(EmptyInputError):  # as a missing mount looks
        run(job)
    assert last_whole(output) == 3 == read_as_others_do(output)


def test_outputs_that_the_store_has_lost_are_made_again(
    make_job: MakeJob, first_day: None, tmp_path: Path
) -> None:
    job, output = make_job(), Store(tmp_path / "out")
    run(job)
    rows = manifest(output)
    output.delete(rows[0]["output"])
    output.write(rows[1]["output"], b"cut short")
    second, _ = run(job)
    assert second.changes["lost"] == 2
    assert [row["output"] for row in manifest(output)[:2]] == [
        rows[0]["output"],
        rows[1]["output"].replace("images/", "images@2/"),
    ]
    assert read_as_others_do(output) == 2
    assert [r["key"] for r in jsonl(output, "generations/0002/retired.jsonl")] == [rows[1]["key"]]


def test_a_trial_keeps_its_photos(make_job: MakeJob, first_day: None, second_day: Day) -> None:
    job = make_job(sample=5)
    run(job)
    second_day()
    again, _ = run(job)
    assert again.nothing_to_do and again.inputs == 5


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_photos_in_a_file_that_was_written_anew_are_compared(
    make_job: MakeJob, photos: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    sound = [key for key, data in photos.items() if refusal(data) is None]
    (tmp_path / "in").mkdir()

    def pack(name: str, members: dict[str, bytes]) -> None:
        if kind == "parquet":
            rows = [{"key": key, "bytes": data} for key, data in members.items()]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / f"{name}.parquet")
            return
        with tarfile.open(tmp_path / "in" / f"{name}.tar", "w") as archive:
            for key, data in members.items():
                member = tarfile.TarInfo(key)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    first = {key: photos[key] for key in sound[:6]}
    pack("a", first)
    pack("b", {key: photos[key] for key in sound[6:8]})
    job, output = make_job(sink=kind), Store(tmp_path / "out")
    run(job)
    # In another order, one changed, one gone, one new; and another file.
    again = {key: first[key] for key in reversed(sound[1:6])} | {sound[9]: photos[sound[9]]}
    pack("a", again | {sound[3]: photos[sound[10]]})
    pack("c", {sound[8]: photos[sound[8]]})
    second, _ = run(job)
    assert second.changes == {"new": 2, "changed": 1, "lost": 0, "gone": 1, "unchanged": 6}
    assert read_as_others_do(output) == 2
    rows = {row["key"]: row for row in manifest(output)}
    assert {key for key, row in rows.items() if row["generation"] == 2} == {
        f"a/{sound[3]}",
        f"a/{sound[9]}",
        f"c/{sound[8]}",
    }
    assert {row["output"].partition("#")[0] for row in rows.values()} == {
        f"shards/{name}.{'tar' if kind == 'webdataset' else kind}"
        for name in ("00000", "00001", "0002-00000")
    }
    assert run(job)[0].nothing_to_do


# ------------------------------------------------------------------ kills, readers, other drivers


@pytest.fixture
def on_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[str], None]]]:
    """Functions that are called with the key after every write of this process."""
    called: list[Callable[[str], None]] = []
    for name in ("write", "write_if_absent"):
        real = getattr(Store, name)

        def write(self: Store, key: str, data: bytes, real: Any = real) -> Any:
            result = real(self, key, data)
            for function in called:
                function(key)
            return result

        monkeypatch.setattr(Store, name, write)
    yield called


def test_readers_see_whole_generations_whenever_a_run_is_killed(
    make_job: MakeJob,
    first_day: None,
    second_day: Day,
    on_write: list[Callable[[str], None]],
    tmp_path: Path,
) -> None:
    """A reader looks after every write; and a run is killed after every write, and repeated."""
    run(make_job())
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    second_day()
    job, seen, keys, wholes = make_job(), [], [], set()
    output = Store(job.output)
    guard = threading.Lock()  # a shard's photos are written by several threads

    def look(key: str) -> None:
        with guard:
            if key.startswith(("_bs_ray/drivers", "_bs_ray/latest", ".bs-ray-tmp-")):
                return  # they come by the clock
            keys.append(key)
            seen.append(read_as_others_do(output))
            wholes.add(output.read("manifest.parquet"))

    on_write.append(look)
    run(job)
    on_write.clear()
    assert set(seen) == {1, 2} and seen == sorted(seen)
    undisturbed = files(output)
    assert wholes == {undisturbed[f"generations/000{g}/manifest.parquet"] for g in (1, 2)}

    class Killed(BaseException):
        pass

    for number in range(len(keys)):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "before", tmp_path / "out")
        left = [number]

        def kill(key: str, left: list[int] = left) -> None:
            with guard:
                if key.startswith(("_bs_ray/drivers", "_bs_ray/latest", ".bs-ray-tmp-")):
                    return
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        on_write.append(kill)
        with pytest.raises(Killed):
            run(job)
        on_write.clear()
        assert read_as_others_do(output) in (1, 2)
        run(job)
        assert files(output) == undisturbed, f"killed after writing {keys[number]}"


def test_a_killed_generation_is_finished_before_the_next_begins(
    make_job: MakeJob, first_day: None, second_day: Day, photos: dict[str, bytes], tmp_path: Path
) -> None:
    job, output = make_job(), Store(tmp_path / "out")
    run(job)
    second_day()
    renewed(prepare(job, QUIET), QUIET)  # it begins, and no more
    Store(job.input).write("zz.jpg", next(d for d in photos.values() if refusal(d) is None))
    found = estimate(job, QUIET)
    assert (found.generation, found.changes["new"], found.done_shards) == (2, 4, 0)
    last, _ = run(job)
    assert (last.generation, last.changes["new"], last.changes["unchanged"]) == (3, 1, 15)
    assert json.loads(output.read("generations/0002/summary.json"))["inputs"] == 15
    assert read_as_others_do(output) == 3


def test_two_drivers_begin_one_generation(
    make_job: MakeJob, first_day: None, second_day: Day, tmp_path: Path
) -> None:
    job = make_job()
    run(job)
    former = prepare(job, QUIET).input_list
    second_day()
    pinned = []
    for name in ("one", "other"):  # the second has seen one photo more
        (tmp_path / name).mkdir()
        changes = news(job, former, tmp_path / name, QUIET)
        pinned.append(pin_input_list(former.output, 2, former.settings, 4, changes))
        Store(job.input).write("zz.jpg", b"")
    assert pinned[0] == pinned[1] == read_input_list(former.output, 2)


def test_a_driver_that_wakes_late_does_not_bring_back_a_former_generation(
    make_job: MakeJob,
    first_day: None,
    second_day: Day,
    on_write: list[Callable[[str], None]],
    tmp_path: Path,
) -> None:
    job, output = make_job(), Store(tmp_path / "out")
    run(job)
    shutil.copytree(tmp_path / "out", tmp_path / "first")
    second_day()
    run(job)
    latest = output.read("summary.json")
    second = (tmp_path / "out" / "generations" / "0002").rename(tmp_path / "hidden")

    def meanwhile(key: str) -> None:
        if key == "summary.json" and second.exists():
            second.rename(tmp_path / "out" / "generations" / "0002")

    on_write.append(meanwhile)  # another driver finishes while this one writes the first's reports
    publish(output)
    assert output.read("summary.json") == latest


def test_a_day_without_a_good_photo_is_no_failure_but_many_bad_ones_are(
    make_job: MakeJob, first_day: None, tmp_path: Path
) -> None:
    job, source = make_job(shard_images=32), Store(tmp_path / "in")
    run(job)
    source.write("b/0.jpg", b"")
    assert run(job)[0].made["quarantined"] == 1
    for index in range(60):
        source.write(f"c/{index}.jpg", b"")
    with pytest.raises(EditFailed, match=r"quarantined; expected at most 50%"):
        run(job)


# ------------------------------------------------------------------ plan, schedule, scale


def test_a_plan_says_what_is_new(
    make_job: MakeJob, first_day: None, second_day: Day, tmp_path: Path
) -> None:
    job = make_job()
    run(job)
    before = files(Store(job.output))
    idle = estimate(job, QUIET)
    assert (idle.generation, idle.hours, idle.changes["unchanged"]) == (1, 0.0, 12)
    second_day()
    found = estimate(job, QUIET)
    assert found.changes == {"new": 4, "changed": 2, "lost": 0, "gone": 1, "unchanged": 9}
    assert (found.generation, found.photos, found.shards, found.done_shards) == (2, 15, 2, 0)
    assert found.hours and found.images_per_s
    assert files(Store(job.output)) == before


def test_the_command_takes_an_interval(
    make_job: MakeJob,
    first_day: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(make_job().model_dump_json())

    def command(*words: str) -> int | str | None:
        monkeypatch.setattr("sys.argv", ["bs-ray", "edit", str(path), *words])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code

    assert command("--watch", "1s", "--rounds", "2", "--json", str(tmp_path / "f")) in (None, 0)
    printed = " ".join(capsys.readouterr().out.split())
    assert "round 1: generation 1: 12 new;" in printed
    assert "round 2: nothing new among 12 photos" in printed
    assert json.loads((tmp_path / "f").read_text())["changes"]["new"] == 12
    assert command("--watch", "daily") == 2 and command("--rounds", "2") == 2


def test_streams_side_by_side() -> None:
    left, right = [("a", 1), ("c", 2), ("c", 3), ("é", 4)], [("b", 5), ("c", 6), ("z", 7)]
    assert list(side_by_side(left, right)) == [
        ([1], []),
        ([], [5]),
        ([2, 3], [6]),
        ([], [7]),
        ([4], []),
    ]
