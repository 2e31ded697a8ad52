"""The demo's portraits: what is found in a folder, and what comes out of it."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.config import TrainJob, editor_settings, shipped_job
from bs_ray.demo import people
from bs_ray.demo.people import Portrait
from bs_ray.demo.run import PHOTO_SLIDER, WITHOUT_PHOTOS
from bs_ray.images.faces import FacesUnavailable, need_centerface
from bs_ray.images.sheets import stacked


@pytest.fixture(scope="module")
def samples() -> list[Portrait]:
    try:
        need_centerface()
    except FacesUnavailable as missing:
        pytest.skip(str(missing))
    return people.portraits(str(people.SAMPLES))


def test_the_samples_are_portraits_whose_source_is_said(samples: list[Portrait]) -> None:
    assert [one.name for one in samples] == ["collins.jpg", "hopper.jpg"]
    sources = (people.SAMPLES / "SOURCES.md").read_text()
    pictures = [path for path in people.SAMPLES.iterdir() if path.suffix != ".md"]
    assert {path.name for path in pictures} == {"collins.jpg", "hopper.jpg"}
    for path in pictures:
        assert f"`{path.name}`" in sources and path.stat().st_size <= 60_000


def test_a_folder_without_portraits_is_refused(
    tmp_path: Path, samples: list[Portrait], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "sea.png")
    with pytest.raises(ValueError, match="no picture shows a face; expected a folder of portraits"):
        people.portraits(str(tmp_path))
    monkeypatch.setattr(people, "MOST", 1)
    (tmp_path / "who.jpg").write_bytes((people.SAMPLES / "hopper.jpg").read_bytes())
    (tmp_path / "zoe.jpg").write_bytes((people.SAMPLES / "hopper.jpg").read_bytes())
    assert [one.name for one in people.portraits(str(tmp_path))] == ["who.jpg"]


def test_the_shipped_job_trains_without_photos() -> None:
    job = shipped_job(PHOTO_SLIDER, WITHOUT_PHOTOS)
    assert isinstance(job, TrainJob) and job.base == people.BASE and job.photos is None


def test_portraits_move_with_the_strength_and_zero_is_the_photo(
    samples: list[Portrait], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = editor_settings({"region": "face", "faces": "largest", "steps": 2})
    monkeypatch.setattr(people, "SETTINGS", quick)
    shown = {replace(s, strengths=(-2.0, 0.0, 2.0)): words for s, words in people.WORDS.items()}
    monkeypatch.setattr(people, "WORDS", shown)
    rows = people.under_sliders(samples[:1])
    assert [(row.portrait, row.slider.name) for row in rows] == [
        ("collins.jpg", "old"),
        ("collins.jpg", "smiling"),
    ]
    assert [caption for _, caption in rows[0].captioned] == ["old -2", "the photo", "old +2"]
    younger, same, older = (cell.astype(int) for cell in rows[0].cells)
    assert (same == rows[1].cells[1]).all()
    assert np.abs(younger - older).max() > 20
    edge = np.abs(older - same)[:8]  # above the head, beyond the region that is edited
    assert not edge.any()

    for row in rows:  # by what public judges are at hand
        assert row.measured.get("identity", [0, 0, 0])[1] == 0
        low, _, high = row.measured.get(row.slider.reads, [0, 0, 1])
        assert low < high and ("identity" in row.measured) == ("identity" in row.finding)

    page = people.as_html(rows)
    assert page.count("<figcaption>") == 6 and "smiling +2" in page and "collins.jpg: old" in page
    sheet = people.as_sheet(rows)
    both = Image.open(BytesIO(stacked([sheet, sheet])))
    assert both.width > 3 * people.CELL_PX and both.height > 4 * people.CELL_PX
