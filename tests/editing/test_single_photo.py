"""`bs-ray edit-one`: one photo in, the same kind of photo out, or a strip; bad input named."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from typer.testing import CliRunner

from bs_ray import cli
from bs_ray.config import EditorSettings, JobError
from bs_ray.editing.editor import EditError
from bs_ray.editing.single_photo import OnePhoto, strengths_of
from bs_ray.images.encode import read_provenance
from bs_ray.models import load_base
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.testing import random_slider

KINDS = ["jpeg", "exif", "alpha", "grey", "deep", "cmyk", "webp", "tiny", "wide"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, random_base: Path) -> str:
    """A registry with two sliders of the random base, and one of another."""
    folder = tmp_path_factory.mktemp("sliders")
    model = load_base(str(random_base))
    for seed, name in enumerate(("smile", "age", "foreign")):
        slider = random_slider(model, name, seed)
        if name == "foreign":
            slider.card.base_id, slider.card.family = "elsewhere", "sd3"
        Registry(str(folder)).publish(slider)
    return str(folder)


def photo(folder: Path, kind: str) -> Path:
    """A photo of 40 x 56 in one of the shapes that photos come in."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (56, 40, 3), dtype=np.uint8))
    options: dict = {"quality": 90}
    name = f"{kind}.jpg"
    if kind == "exif":
        exif = Image.Exif()
        exif[274], exif[271] = 6, "a maker"
        options["exif"] = exif
    elif kind == "alpha":
        image.putalpha(Image.fromarray(rng.integers(0, 256, (56, 40), dtype=np.uint8)))
        name, options = "alpha.png", {}
    elif kind == "grey":
        image = image.convert("L")
    elif kind == "deep":
        image = Image.fromarray(rng.integers(0, 65536, (56, 40), dtype=np.uint16))
        name, options = "deep.png", {}
    elif kind == "cmyk":
        image = image.convert("CMYK")
    elif kind == "webp":
        name, options = "photo.webp", {"lossless": True}
    elif kind == "tiny":
        image, name, options = image.crop((0, 0, 1, 1)), "tiny.png", {}
    elif kind == "wide":
        image, name, options = image.resize((300, 20)), "wide.png", {}
    image.save(folder / name, **options)
    return folder / name


def one(path: Path, sliders: dict[str, float], registry: str, base: Path, **settings) -> OnePhoto:
    editor = EditorSettings(**{"steps": 2} | settings)
    return OnePhoto(path, sliders, editor, base=str(base), registry=registry)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_gives_back_the_file_and_more_keeps_its_kind(
    tmp_path: Path, registry: str, random_base: Path, kind: str
) -> None:
    path = photo(tmp_path, kind)
    same, _ = one(path, {"smile": 0.0}, registry, random_base).edit()
    assert same == path.read_bytes()
    data, notes = one(path, {"smile": 1.5, "age": -1.0}, registry, random_base).edit()
    with Image.open(path) as before, Image.open(io.BytesIO(data)) as after:
        turned = kind == "exif"
        assert after.size == (before.size[::-1] if turned else before.size)
        assert after.format == before.format
        assert after.mode == {"CMYK": "RGB"}.get(before.mode, before.mode)
        if kind == "alpha":
            assert after.getchannel("A").tobytes() == before.getchannel("A").tobytes()
        if kind == "exif":
            assert after.getexif()[271] == "a maker" and 274 not in after.getexif()
    assert read_provenance(data)["sliders"] == {"smile@1": 1.5, "age@1": -1.0}
    assert bool(notes) == (kind == "cmyk")


def test_strips(tmp_path: Path, registry: str, random_base: Path) -> None:
    mixed = one(photo(tmp_path, "jpeg"), {"smile": 1.5, "age": -1.0}, registry, random_base)
    sweep, composed = mixed.sweep(), mixed.compose()
    assert sweep.width > 5 * 90 and sweep.height > 2 * 128
    assert composed.width > 3 * 90 and composed.height < sweep.height


def test_the_middle_of_a_sweep_is_the_photo_itself(
    tmp_path: Path, registry: str, random_base: Path
) -> None:
    path = photo(tmp_path, "wide")  # of a size that a strip leaves as it is
    strip = np.asarray(one(path, {"smile": 1.5}, registry, random_base).sweep())
    pixels = np.asarray(Image.open(path))
    places = sliding_window_view(strip, pixels.shape)[:, :, 0]
    [[_, x]] = np.argwhere((places == pixels).all((2, 3, 4)))
    assert abs(x + pixels.shape[1] / 2 - strip.shape[1] / 2) < 50


def test_the_order_of_sliders_does_not_matter(
    tmp_path: Path, registry: str, random_base: Path
) -> None:
    path = photo(tmp_path, "wide")
    mixes: list[dict[str, float]] = [{"smile": 1.5, "age": -1.0}, {"age": -1.0, "smile": 1.5}]
    one_way, other_way = (one(path, mix, registry, random_base).edit()[0] for mix in mixes)
    pixels = [np.asarray(Image.open(io.BytesIO(data)), int) for data in (one_way, other_way)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.parametrize(
    ("sliders", "error", "message"),
    [
        ({"beard": 1.0}, SliderError, "got 'beard'; expected one of age, foreign, smile"),
        ({"foreign": 1.0}, SliderError, "elsewhere"),
        ({"smile": float("nan")}, SliderError, "smile: got strength nan; expected a number"),
    ],
)
def test_bad_sliders(
    tmp_path: Path, registry: str, random_base: Path, sliders, error, message
) -> None:
    with pytest.raises(error, match=message):
        one(photo(tmp_path, "jpeg"), sliders, registry, random_base).edit()


def test_bad_photos(tmp_path: Path, registry: str, random_base: Path) -> None:
    whole = photo(tmp_path, "jpeg")
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    for name, message in [
        ("nowhere.jpg", "not a file"),
        ("half.jpg", "truncated"),
        ("huge.png", "too many pixels: got 10000 x 10000; expected at most 64000000"),
    ]:
        with pytest.raises(EditError, match=message):
            one(tmp_path / name, {"smile": 1.0}, registry, random_base)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not the photo's."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_command(tmp_path: Path, here: Path, registry: str, random_base: Path) -> None:
    path = photo(tmp_path, "jpeg")
    common = ["edit-one", str(path), "--registry", registry, "--base", str(random_base)]
    done = CliRunner().invoke(cli.app, [*common, "--slider", "smile=1", "--sweep"])
    assert done.exit_code == 0 and "jpeg-sweep.png" in done.output.replace("\n", "")
    assert (here / "jpeg-sweep.png").is_file()
    done = CliRunner().invoke(cli.app, [*common, "--slider", "smile=1"])
    assert done.exit_code == 0 and (here / "jpeg-edited.jpg").is_file()
    # A job that edits the photo's folder must not find what was made of the photo.
    assert [file.name for file in tmp_path.glob("*.*")] == [path.name]
    bad = CliRunner().invoke(cli.app, [*common, "--slider", "smile=1", "--method", "magic"])
    assert isinstance(bad.exception, JobError) and 'got "magic"' in str(bad.exception)


def test_boxes_are_edited_and_named_in_the_file(
    tmp_path: Path, registry: str, random_base: Path
) -> None:
    path = photo(tmp_path, "wide")
    common = ["edit-one", str(path), "--registry", registry, "--base", str(random_base)]
    common += ["--slider", "smile=9", "--out", str(tmp_path / "out.png")]
    boxes = ["--box", "20,2,36,18", "--box", "100.5,2,112.5,14"]
    done = CliRunner().invoke(cli.app, [*common, *boxes], catch_exceptions=False)
    assert done.exit_code == 0
    after = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    moved = np.abs(after - np.asarray(Image.open(path))).max(axis=(0, 2)) > 0
    assert moved[20:36].any() and moved[101:112].any()
    assert not moved[:15].any() and not moved[50:90].any() and not moved[125:].any()
    made = read_provenance((tmp_path / "out.png").read_bytes())
    assert made is not None
    assert [region["x"] for region in made["regions"]] == [28, 106.5]
    for wrong, message in [
        (["--box", "1,2,3"], "box: got '1,2,3'; expected left,top,right,bottom"),
        (["--region", "boxes"], "got no boxes"),
        (["--region", "photo", "--box", "1,2,3,4"], "got boxes; expected none"),
        (["--region", "mouth"], 'region: got "mouth"'),
    ]:
        refused = CliRunner().invoke(cli.app, [*common, *wrong])
        assert message in str(refused.exception)


def test_words_of_the_shell_are_sliders(
    tmp_path: Path, here: Path, registry: str, random_base: Path
) -> None:
    path = photo(tmp_path, "wide")
    common = ["edit-one", str(path), "--base", str(random_base), "--registry", registry]
    words = ["--words", "person, smiling", "person, frowning", "--strength", "3"]
    done = CliRunner().invoke(cli.app, [*common, *words], catch_exceptions=False)
    assert done.exit_code == 0
    made = read_provenance((here / f"wide-edited{path.suffix}").read_bytes())
    assert made is not None
    [(reference, strength)] = made["sliders"].items()
    assert reference.startswith("smiling@w") and strength == 3
    said = made["words"][reference]
    assert (said["positive"], said["target"]) == ("person, smiling", "person")
    mixed = [*common, *words, "--slider", "smile=1", "--compose"]
    assert CliRunner().invoke(cli.app, mixed, catch_exceptions=False).exit_code == 0
    two = [*words, "--words", "person, old", "person, young", "--strength", "-1"]
    done = CliRunner().invoke(cli.app, [*common, *two], catch_exceptions=False)
    made = read_provenance((here / f"wide-edited{path.suffix}").read_bytes())
    assert made is not None
    assert {r.partition("@")[0]: s for r, s in made["sliders"].items()} == {"smiling": 3, "old": -1}
    for wrong, message in [
        ([], "got neither --slider nor --words"),
        (["--slider", "smile=1", "--strength", "2"], "got --strength or --target without --words"),
        (["--words", "person", "person"], "got 'person' for both"),
        (["--words", "person"], "--words: got ['person']; expected two prompts"),
        ([*two, "--strength", "2"], "got --strength 3 times for 2 --words; expected it once, or"),
        (["--words", "PERSON", "person"], "the base predicts the same"),
    ]:
        refused = CliRunner().invoke(cli.app, [*common, *wrong])
        assert message in str(refused.exception)


def test_strengths_of() -> None:
    assert strengths_of(["smile=1.5", "age@2=-1"]) == {"smile": 1.5, "age@2": -1.0}
    for bad in ("smile", "=1", "smile=much"):
        with pytest.raises(JobError, match="expected name=strength"):
            strengths_of([bad])
