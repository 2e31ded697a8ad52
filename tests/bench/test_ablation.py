"""The ablation: sweeps are compared at equal moves, seed by seed, and a stopped run goes on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.bench import ablation as bench_ablation
from bs_ray.bench.ablation import ARMS, STRENGTHS, ablation
from bs_ray.bench.sweeps import Notebook, Run, compared
from bs_ray.bench.train_bench import TrainBench
from bs_ray.bench.world import identity_distances, moves, open_world, read, unedited
from bs_ray.images.faces import FacesUnavailable
from bs_ray.images.pixels import pixels_of
from bs_ray.judges.judge import JudgeUnavailable
from bs_ray.tiny.faces import render, sample_scenes
from bs_ray.tiny.photo.people import held_out


def run(arm: str, seed: int, reach: float, harm: float, kid: float = 0.0) -> Run:
    """A slider whose effect is strength x reach, at `harm` and `kid` for each unit of effect."""
    effect = [reach * strength for strength in (0.0, 1.0, 2.0)]
    one = {
        "effect": effect,
        "drift": [harm * e for e in effect],
        "kid": [kid * e for e in effect],
    }
    return Run("age", seed, arm, {}, 3.0, {"-1": one, "1": one}, {})


def test_arms_are_compared_where_the_attribute_moved_equally_far() -> None:
    runs = [
        run("neither", 0, reach=10, harm=1.0, kid=0.1),
        run("weak", 0, reach=5, harm=0.8, kid=0.3),  # half the strength alone would halve its harm
        run("neither", 1, reach=20, harm=2.0),
        run("weak", 1, reach=5, harm=1.2),
        run("short", 0, reach=3, harm=0.1),
        run("of another seed", 2, reach=9, harm=1.0),
    ]
    found = compared(runs, "age", (4.0, 8.0))
    assert found["weak"]["drift"] == pytest.approx({"mean": -30, "sd": 14.14}, abs=0.01)
    assert found["weak"]["reached"] == 2
    # (0.3 - 0.1) at 4 and at 8 for seed 0, nothing for seed 1, times 1,000.
    assert found["weak"]["kid"]["mean"] == pytest.approx(1000 * 0.2 * 6 / 2)
    assert found["weak"]["absolute"]["drift"]["mean"] == pytest.approx((0.8 + 1.2) / 2 * 6)
    assert found["short"]["reached"] == 0 and "drift" in found["short"]  # at 4, which it reached
    assert found["short"]["far"]["effect"]["mean"] == 6
    assert found["short"]["far"]["drift"]["mean"] == pytest.approx(100 * (0.6 / 20 - 1))
    assert "of another seed" not in found and found["neither"]["drift"]["mean"] == 0


def test_a_file_of_other_runs_is_refused(tmp_path: Path) -> None:
    file, goals = tmp_path / "a.json", {"age": (1.0,)}
    Notebook.open(file, {"base": "tiny"}, goals).add(run("neither", 0, 1.0, 1.0))
    again = Notebook.open(file, {"base": "tiny"}, goals)
    assert again.holds("age", 0, "neither", {})
    assert not again.holds("age", 0, "neither", {"steps": 90})
    with pytest.raises(ValueError, match=r"whose runs are not of .*tiny-flow.* another name"):
        Notebook.open(file, {"base": "tiny-flow"}, goals)


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("steps", "batch_size"):
        monkeypatch.setitem(bench_ablation._SHARED, name, 2)
    bench, lines = TrainBench.load(), []

    def report(done: int, total: int, line: str) -> None:
        lines.append((done, total, line.split(":")[0]))
        if len(lines) == 1:
            raise KeyboardInterrupt

    def go() -> dict:
        return ablation(bench, ["age"], 1, ["mask"], 2, tmp_path / "a.json", report)

    with pytest.raises(KeyboardInterrupt):
        go()
    figures = go()
    assert lines == [(1, 2, "age, seed 0, neither"), (2, 2, "age, seed 0, mask")]
    assert [one["settings"] for one in figures["runs"]] == [ARMS["neither"], ARMS["mask"]]
    for one in figures["runs"]:
        for swept in one["sweep"].values():
            assert swept.keys() == {"effect", "drift", "identity", "distance", "truth", "kid"}
            assert {len(values) for values in swept.values()} == {1 + len(STRENGTHS["drawn"])}
            nothing = [swept[name][0] for name in ("effect", "drift", "identity", "distance")]
            assert nothing == pytest.approx([0, 0, 0, 0], abs=1e-6)
            assert 0 < swept["truth"][0] < 0.1 and swept["identity"][-1] > 0
    with pytest.raises(ValueError, match=r"got \['woman'\] on base tiny; expected age"):
        ablation(bench, ["woman"], 1, ["mask"], 2, None, report)


def test_each_base_has_its_faces() -> None:
    with pytest.raises(ValueError, match=r"got none for base tiny-photo.*--faces"):
        open_world("tiny-photo")
    with pytest.raises(ValueError, match=r"got lfw.tgz for base tiny-flow.*expected none"):
        open_world("tiny-flow", "lfw.tgz")


def lot(person: str, of: int) -> int:
    return int(hashlib.sha256(person.encode()).hexdigest(), 16) % of


def test_photographs_of_strangers_are_measured_on(tmp_path: Path) -> None:
    """On drawn faces, laid out as LFW's photos are."""
    people = [f"P{number:03d}" for number in range(200)]
    strangers = [person for person in people if held_out(person)][:7]
    trained = [person for person in people if lot(person, 20) == 1][:3]
    left_out = [p for p in people if not held_out(p) and lot(p, 20) != 1][:2]
    drawn = pixels_of(render(sample_scenes(12, 3)))
    for person, picture in zip([*strangers, *trained, *left_out], drawn, strict=True):
        photo = Image.new("RGB", (250, 250), (150, 150, 150))
        photo.paste(Image.fromarray(picture).resize((52, 52)), (99, 105))
        (tmp_path / person).mkdir()
        for number in (1, 2):
            photo.save(tmp_path / person / f"{person}_{number:04d}.jpg", quality=95)
    try:
        world = open_world("tiny-photo", str(tmp_path))
    except (JudgeUnavailable, FacesUnavailable) as missing:
        pytest.skip(str(missing))
    assert sorted(world.photos.keys) == sorted(trained)
    parts = [world.held_out(9, part) for part in range(3)]
    assert [len(part.subjects) for part in parts] == [3, 2, 2]
    seen = {part_photo.tobytes() for part in parts for part_photo in unedited(part)}
    assert len(seen) == 7
    faces = parts[0]
    assert all(subject.face for subject in faces.subjects)
    still, grey = unedited(faces), unedited(faces) // 2
    versions = np.stack([still, grey], axis=1)
    readings = read(world, faces, versions)
    assert readings.shape == (3, 2, 3) and list(world.ranges) == ["age", "woman", "smile"]
    assert 0 < readings[:, :, 0].min() < readings[:, :, 0].max() < 100
    assert identity_distances(world, faces, versions)[:, 0] == pytest.approx(np.zeros(3))
    moved = moves(world, "smile", -1, np.array([[30.0, 0.5, 0.4]]), np.array([[40.0, 0.6, 0.1]]))
    assert (moved.effect, moved.drift) == pytest.approx((0.3, 0.1))
    kids = [
        faces.realism("age", readings[:, k, 0], list(v), world.features(list(v)))["kid"]
        for k, v in enumerate((still, grey))
    ]
    assert kids[1] > kids[0]
    with pytest.raises(ValueError, match="got chubby; expected age or smile"):
        world.prompts("chubby")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no Name/Name_0001\.jpg"):
        open_world("tiny-photo", str(tmp_path / "empty"))
