"""The demo's portraits: what is found in a folder, and what comes out of it."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.config import editor_settings
from bs_ray.demo import people
from bs_ray.images.faces import FacesUnavailable, need_centerface
from bs_ray.images.rows import DecodedRow
from bs_ray.images.sheets import stacked


@pytest.fixture(scope="module")
def samples() -> list[DecodedRow]:
    try:
        need_centerface()
    except FacesUnavailable as missing:
        pytest.skip(str(missing))
    return people.portraits(str(people.SAMPLES))


def test_the_samples_are_portraits_whose_source_is_said(samples: list[DecodedRow]) -> None:
    assert [row["key"] for row in samples] == ["collins.jpg", "hopper.jpg"]
    sources = (people.SAMPLES / "SOURCES.md").read_text()
    pictures = [path for path in people.SAMPLES.iterdir() if path.suffix != ".md"]
    assert {path.name for path in pictures} == {"collins.jpg", "hopper.jpg"}
    for path in pictures:
        assert f"`{path.name}`" in sources and path.stat().st_size <= 60_000


def test_a_folder_without_portraits_is_refused(
    tmp_path: Path, samples: list[DecodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "sea.png")
    with pytest.raises(ValueError, match="no picture shows a face; expected a folder of portraits"):
        people.portraits(str(tmp_path))
    monkeypatch.setattr(people, "MOST", 1)
    (tmp_path / "who.jpg").write_bytes((people.SAMPLES / "hopper.jpg").read_bytes())
    (tmp_path / "zoe.jpg").write_bytes((people.SAMPLES / "hopper.jpg").read_bytes())
    assert [row["key"] for row in people.portraits(str(tmp_path))] == ["who.jpg"]


def test_portraits_move_with_the_strength_and_zero_is_the_photo(
    samples: list[DecodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = editor_settings({"region": "face", "faces": "largest", "steps": 2})
    monkeypatch.setattr(people, "SETTINGS", quick)
    shown = {name: (words, (-2.0, 0.0, 2.0)) for name, (words, _) in people.WORDS.items()}
    monkeypatch.setattr(people, "WORDS", shown)
    rows = people.under_sliders(samples[:1])
    assert [(row.portrait, row.slider) for row in rows] == [
        ("collins", "old"),
        ("collins", "smiling"),
    ]
    assert [cell.caption for cell in rows[0].cells] == ["old -2", "the photo", "old +2"]
    younger, same, older = (cell.pixels.astype(int) for cell in rows[0].cells)
    assert (same == rows[1].cells[1].pixels).all()
    assert np.abs(younger - older).max() > 20
    edge = np.abs(older - same)[:8]  # above the head, beyond the region that is edited
    assert not edge.any()

    page = people.as_html(rows)
    assert page.count("<figcaption>") == 6 and "smiling +2" in page and "collins: old" in page
    sheet = people.as_sheet(rows)
    both = Image.open(BytesIO(stacked([sheet, sheet])))
    assert both.width > 3 * people.CELL_PX and both.height > 4 * people.CELL_PX
