"""The quality gate: what passes stays, what fails is made again, weaker, and at last marked."""

from pathlib import Path

import numpy as np
import pytest

from bs_ray.config import EditorSettings, QualityGate
from bs_ray.editing.editor import EditError, Editor, outputs_of
from bs_ray.editing.gate import GatedEditor, gate_judges
from bs_ray.images.faces import Face
from bs_ray.images.regions import Region
from bs_ray.judges.judge import JudgeUnavailable, Subject
from bs_ray.judges.load import Panel
from bs_ray.models import load_base
from bs_ray.testing import edit_of, random_slider


class Distance:
    """An identity judge by hand: the mean distance of pixels, on [-1, 1]."""

    needs_face = False

    def distances(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        photo, *others = subject.seen([subject.photo, *pictures], 64)
        return np.array([np.abs(photo - other.astype(float)).mean() / 127.5 for other in others])


class OfFaces(Distance):
    """The same, but it needs a face."""

    needs_face = True

    def distances(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        found = super().distances(subject, pictures)
        return found if subject.face else np.full(len(found), np.nan)


class Detector:
    """Finds what it is told to find."""

    def __init__(self, *boxes: tuple[float, float, float, float]):
        self.faces = [Face(box) for box in boxes]

    def find(self, pixels: np.ndarray) -> list[Face]:
        return self.faces


@pytest.fixture
def editor(random_base: Path):
    model = load_base(str(random_base))
    editor = Editor(model, [random_slider(model, "smile", 0)], EditorSettings(steps=2))
    yield editor
    editor.close()


def photos(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(60, 190, (64, 64, 3), dtype=np.uint8) for _ in range(count)]


def gated(editor: Editor, **gate) -> GatedEditor:
    return GatedEditor(editor, Panel(identity=(Distance(),)), QualityGate(**gate))  # type: ignore[arg-type]


def test_only_what_fails_is_weakened(editor: Editor) -> None:
    strong, weak = {"smile": 8.0}, {"smile": 0.02}
    edits = [edit_of(editor, "a", photos(1)[0], strong, weak, {"smile": 0.0})]
    kept = outputs_of(gated(editor, identity=-1.0).edit(edits)[0])
    assert all(not out.notes for out in kept)
    threshold = (kept[0].measured["identity"] + 1) / 2  # half-way from the strong edit to none
    found = outputs_of(gated(editor, identity=threshold, backoff=0.5, retries=8).edit(edits)[0])
    assert found[0].measured["identity"] >= threshold > kept[0].measured["identity"]
    assert len(found[0].notes) == 1 and found[0].notes[0].startswith("strengths x0.")
    assert np.array_equal(found[1].pixels, kept[1].pixels) and found[1].notes == ()
    assert np.array_equal(found[2].pixels, edits[0].pixels) and found[2].measured == {}
    # It is the edit at the strength that the note says.
    share = float(found[0].notes[0].split()[1][1:])
    [same] = outputs_of(
        editor.edit([edit_of(editor, "a", photos(1)[0], {"smile": 8.0 * share})])[0]
    )
    assert (
        np.abs(same.pixels - found[0].pixels).max()
        < 0.05 * np.abs(kept[0].pixels - edits[0].pixels).max()
    )


def test_what_never_passes_is_marked_after_the_last_try(editor: Editor) -> None:
    before = editor.evaluations
    edits = [edit_of(editor, "a", photos(1)[0], {"smile": 8.0})]
    [out] = outputs_of(gated(editor, identity=1.0, backoff=0.9, retries=2).edit(edits)[0])
    assert out.notes[0] == "strengths x0.81 to keep the identity"
    assert out.notes[1].startswith("identity ") and out.notes[1].endswith("is below 1")
    assert editor.evaluations - before == 3 * 2 * 2  # three tries, two steps, two branches


def test_a_bad_edit_among_them_goes_on_as_one(editor: Editor) -> None:
    edits = [
        edit_of(editor, "a", photos(1)[0], {"smile": 1.0}),
        edit_of(editor, "b", photos(1)[0][..., :1], {"smile": 1.0}),
    ]
    good, bad = gated(editor).edit(edits)
    assert outputs_of(good)[0].measured["identity"] < 1
    with pytest.raises(EditError, match="photo b: got uint8"):
        outputs_of(bad)


def test_a_gate_needs_its_judges(editor: Editor, random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailable, match="gate: got no identity and no clip judge"):
        gate_judges(tmp_path, QualityGate(effect=0.1))
    with pytest.raises(JudgeUnavailable, match=r"judges.identity: got 'dlip'; expected dlib, own"):
        gate_judges(random_base, QualityGate.model_validate({"judges": {"identity": "dlip"}}))
    gate = QualityGate(identity=-1, effect=50.0)
    judged = GatedEditor(editor, gate_judges(random_base, gate), gate)
    [out] = outputs_of(judged.edit([edit_of(editor, "a", photos(1)[0], {"smile": 1.0})])[0])
    assert set(out.measured) == {"identity", "effect"}
    assert out.notes == (f"effect {out.measured['effect']:.2f} is below 50",)


def test_the_worst_region_counts(editor: Editor) -> None:
    """Each region is measured by itself, on the face that is in it."""
    photo = photos(1)[0]
    regions = (Region(16, 16, 32), Region(48, 48, 32))
    edits = [edit_of(editor, "a", photo, {"smile": 8.0}, regions=regions)]
    panel = Panel(identity=(OfFaces(),))  # type: ignore[arg-type]
    least = {}
    for name, boxes in {
        "first": [(10, 10, 20, 20)],
        "second": [(40, 40, 50, 50)],
        "both": [(10, 10, 20, 20), (40, 40, 50, 50)],
    }.items():
        gate = GatedEditor(editor, panel, QualityGate(identity=-1.0), Detector(*boxes))  # type: ignore[arg-type]
        least[name] = outputs_of(gate.edit(edits)[0])[0].measured["identity"]
    assert least["first"] != least["second"]
    assert least["both"] == min(least["first"], least["second"])


def test_what_cannot_be_measured_is_said_and_kept(editor: Editor) -> None:
    gate = GatedEditor(editor, Panel(identity=(OfFaces(),)), QualityGate(), Detector())  # type: ignore[arg-type]
    [out] = outputs_of(gate.edit([edit_of(editor, "a", photos(1)[0], {"smile": 8.0})])[0])
    assert out.notes == ("no face was found; the identity was not measured",)
    assert out.measured == {}
