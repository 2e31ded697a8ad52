"""Splits of the user's own: folders, archives, shards, tables of prompts."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bs_ray.config import EvalJob, JobError
from bs_ray.config.evaluate import PhotoSplit, PromptSplit
from bs_ray.config.load import job_of
from bs_ray.datasets.ingest import DamagedArchiveError, ingest_photos
from bs_ray.evaluate.arms import arms_of
from bs_ray.evaluate.splits.photos import open_photos
from bs_ray.evaluate.splits.prompts import open_prompts
from bs_ray.images.formats import EmptyInputError

PEOPLE = {"Ann_A": 3, "Bob_B": 2, "Cai_C": 1}


@pytest.fixture
def photos(saved: Callable[..., bytes], tmp_path: Path) -> dict[str, bytes]:
    """Six photos of three people, by key; each of its own grey."""
    keys = [
        f"{who}/{who}_{n:04d}.jpg" for who, count in PEOPLE.items() for n in range(1, count + 1)
    ]
    grey = {key: Image.new("RGB", (24, 24), (30 * n, 90, 90)) for n, key in enumerate(keys)}
    return {key: saved(image, "JPEG") for key, image in grey.items()}


def as_folder(photos: dict[str, bytes], path: Path) -> str:
    for key, data in photos.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)
    (path / "notes.txt").write_text("no photo")
    return str(path)


def as_tar(photos: dict[str, bytes], path: Path) -> str:
    name = path.with_name("photos.tgz")
    with tarfile.open(name, "w:gz") as tar:
        for key, data in {**photos, "._hidden.jpg": b"x"}.items():
            info = tarfile.TarInfo(f"lfw/{key}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(name)


def as_zip(photos: dict[str, bytes], path: Path) -> str:
    name = path.with_name("photos.zip")
    with zipfile.ZipFile(name, "w") as archive:
        for key, data in photos.items():
            archive.writestr(key, data)
        archive.writestr("__MACOSX/._a.jpg", b"x")
    return str(name)


def as_shards(photos: dict[str, bytes], path: Path) -> str:
    ingest_photos(as_folder(photos, path), str(path.with_name("shards")), shard_images=4)
    return str(path.with_name("shards"))


PLACES = [as_folder, as_tar, as_zip, as_shards]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_photos_are_read_wherever_they_lie(place, photos, tmp_path: Path) -> None:
    where = place(photos, tmp_path / "in")
    split = open_photos(PhotoSplit(photos=where, count=9), seed=0)
    items = split.items(0, 9)
    assert [item.number for item in items] == list(range(6)) and not split.pairs
    read = {int(item.pixels[0, 0, 0]) for item in items}
    assert len(read) == 6 and all(item.key and not item.problem for item in items)

    people = open_photos(PhotoSplit(photos=where, count=9, identities=True), seed=0)
    assert len(people) == 3 and len({item.identity for item in people.items(0, 3)}) == 3
    pairs = people.pair_items()
    assert len(pairs) == 2 and all(one.identity == other.identity for one, other in pairs)
    assert all((one.pixels != other.pixels).any() for one, other in pairs)


def test_a_larger_sample_contains_the_smaller_one(photos, tmp_path: Path) -> None:
    where = as_folder(photos, tmp_path / "in")
    few, many, other = (
        [item.key for item in open_photos(PhotoSplit(photos=where, count=n), seed).items(0, n)]
        for n, seed in ((3, 0), (5, 0), (3, 1))
    )
    assert many[:3] == few != other


def test_held_out_people_are_those_that_no_network_was_trained_on(photos, tmp_path: Path) -> None:
    grey = next(iter(photos.values()))
    names = [f"lfw/P_{n}/P_{n}_0001.jpg" for n in range(8)] + ["31_1_0_2017.jpg", "31_1_0_2018.jpg"]
    folder = as_folder(dict.fromkeys(names, grey), tmp_path / "in")
    held = PhotoSplit(photos=folder, people="held-out", identities=True)
    # P_7 and 31_1_0_2018.jpg by their hash, which the recipe of tiny-photo leaves out.
    assert {item.identity for item in open_photos(held, 0).items(0, 9)} == {"lfw/P_7", ""}

    as_folder({"IMG_0001.jpg": grey}, tmp_path / "in")
    with pytest.raises(ValueError, match=r"which has the photo IMG_0001.jpg; expected LFW's"):
        open_photos(held, 0)
    seen = PhotoSplit(photos=as_folder({"Ann_A/Ann_A_0001.jpg": grey}, tmp_path / "seen"))
    with pytest.raises(EmptyInputError, match="no held-out person among the 1 photos"):
        open_photos(seen.model_copy(update={"people": "held-out"}), 0)


def test_a_photo_that_cannot_be_read_says_why(photos, tmp_path: Path) -> None:
    where = as_folder({**photos, "broken.jpg": b"\xff\xd8\xff no"}, tmp_path / "in")
    items = open_photos(PhotoSplit(photos=where, count=9), 0).items(0, 9)
    assert [item.problem.partition(":")[0] for item in items if item.problem] == ["damaged"]


def test_places_without_photos(photos, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyInputError, match="empty, where no photo lies; expected a folder"):
        open_photos(PhotoSplit(photos=str(tmp_path / "empty")), 0)
    whole = Path(as_tar(photos, tmp_path / "in"))
    whole.write_bytes(whole.read_bytes()[:400])
    with pytest.raises(DamagedArchiveError, match="got a damaged archive"):
        open_photos(PhotoSplit(photos=str(whole)), 0)


# As Concept Sliders' own files begin.
CONCEPT_SLIDERS = """,case_number,prompt,evaluation_seed
0,0,"photo of a person, studio",2000
1,1,image of a person,2001.0
2,5,"portrait, outdoors",7
"""


def test_prompts_as_concept_sliders_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text(CONCEPT_SLIDERS)
    split = open_prompts(PromptSplit(prompts=str(file), count=2))
    assert [(i.key, i.prompt, i.seed) for i in split.items(0, 9)] == [
        ("case-0", "photo of a person, studio", 2000),
        ("case-1", "image of a person", 2001),
    ]
    file.write_text("prompt,seed\na,1\n")
    with pytest.raises(ValueError, match="columns prompt, seed; expected case_number"):
        open_prompts(PromptSplit(prompts=str(file)))
    file.write_text("case_number,prompt,evaluation_seed\n3,a person,soon\n")
    with pytest.raises(ValueError, match="line 2 has the prompt 'a person' and the seed 'soon'"):
        open_prompts(PromptSplit(prompts=str(file)))


# --- in a job file ------------------------------------------------------------------------------


def job(**settings) -> EvalJob:
    return EvalJob(**{"name": "t", "sliders": {"smile": "smile"}} | settings)


def test_short_forms() -> None:
    splits = job(splits={"photos": "s3://b/in", "prompts": "people.csv", "faces": 3}).splits
    assert splits == {
        "photos": PhotoSplit(photos="s3://b/in"),
        "prompts": PromptSplit(prompts="people.csv"),
        "faces": 3,
    }
    assert job(sliders=["age", "smile"]).sliders == {"age": "", "smile": ""}
    compared = job(sliders={}, compare=["age@1", "out/age/0002.safetensors"]).compare
    assert {name: arm.slider for name, arm in compared.items()} == {
        "age@1": "age@1",
        "age 0002": "out/age/0002.safetensors",
    }


WORDS = {"positive": "person, old", "negative": "person, young"}


def test_words_stand_where_a_slider_would(random_base: Path) -> None:
    found = job(base=str(random_base), sliders={"older": WORDS | {"moves": "age"}, "smile": ""})
    assert found.moves == {"older": "age", "smile": ""}
    arm, trained = arms_of(found)
    assert (arm.name, arm.measure, trained.words) == ("older", "age", None)
    card = arm.resolved().card
    assert (card.name, card.pulls) == ("older", {"person, old": 3.0, "person, young": -3.0})

    compare = {"a": {"slider": "older"}, "b": {"slider": WORDS | {"eta": 5}}, "c": {"slider": "x"}}
    first, second, third = arms_of(
        found.model_copy(update={"compare": job(compare=compare).compare})
    )
    assert [one.measure for one in (first, second, third)] == ["age", "age", ""]
    assert first.resolved().card == card and second.resolved().card.eta == 5.0
    assert second.slider == "old" and third.words is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sliders": {"A b": WORDS}}, "got name 'A b'"),
        ({"sliders": {}}, "got no sliders"),
        ({"splits": {"mine": 3}}, "got splits.mine=3; expected a count for faces, wild, text"),
        ({"splits": {"faces": "in"}}, "got splits.faces"),
        ({"splits": {"../x": "in"}}, "got the name '../x'"),
        ({"compare": ["age@1"]}, "expected two or more"),
        ({"compare": ["a", "b"], "strengths": [-2, -1, 0, 1]}, "without their opposites"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        job(**settings)


def test_a_job_of_any_form_is_stored_and_read_again() -> None:
    given = job(splits={"photos": "in"}, compare=["a", "b"], sliders={"older": WORDS})
    assert job_of(given.model_dump(by_alias=True), "stored") == given
    with pytest.raises(JobError):
        job_of({**given.model_dump(), "splits": {"photos": {"photo": "in"}}}, "stored")
