"""The check of public judges, on archives of our own making whose every answer is known."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bs_ray.bench.judges import judges, read_pairs
from bs_ray.images.faces import Face
from bs_ray.judges.judge import Card, Embedding, Reading, Subject
from bs_ray.judges.load import Panel

PX = 8


class ByRed(Embedding):
    """Photos are of one person where their red is alike."""

    card = Card("by-red", "1", "MIT", "difference of red")
    needs_face = True
    same_below = 10.0

    def embed(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        found = np.array([[p[..., 0].mean()] for p in pictures], np.float32)
        return found if subject.face and subject.face.box[0] == 1 else np.full_like(found, np.nan)

    def between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.abs(one - other)[..., 0]


class ByGreen:
    """Green is the age, blue above 128 a woman."""

    card = Card("by-green", "1", "MIT", "green")
    needs_face = True
    readings = (Reading("age", "years"), Reading("woman", "probability"))

    def read(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        found = np.array([[p[..., 1].mean(), p[..., 2].mean() / 255] for p in pictures])
        return found if subject.face else np.full_like(found, np.nan)


class SmilesInBlue:
    """Blue is the probability of a smile."""

    card = Card("smiles-in-blue", "1", "MIT", "blue")
    needs_face = True
    readings = (Reading("smile", "probability"),)

    def read(self, subject: Subject, pictures: list[np.ndarray]) -> np.ndarray:
        found = np.array([[p[..., 2].mean() / 255] for p in pictures])
        return found if subject.face else np.full_like(found, np.nan)


class AllButBlack:
    def find(self, pixels: np.ndarray) -> list[Face]:
        return [Face((0, 0, 4, 9)), Face((1, 1, 7, 7))] if pixels.any() else []


def archive(file: Path, photos: dict[str, tuple[int, int, int]]) -> str:
    """A tar of plain photos, by name. (Their colours survive JPEG to within 2.)"""
    with tarfile.open(file, "w") as tar:
        for name, colour in photos.items():
            data = io.BytesIO()
            image = Image.new("RGB", (PX, PX), colour)
            image.save(data, "JPEG", quality=100, subsampling=0)
            info = tarfile.TarInfo(name)
            info.size = data.tell()
            tar.addfile(info, io.BytesIO(data.getvalue()))
    return str(file)


@pytest.fixture
def panel() -> Panel:
    return Panel(identity=(ByRed(),), attributes=(ByGreen(),))  # type: ignore[arg-type]


def lfw(name: str, number: int) -> str:
    return f"lfw/{name}/{name}_{number:04d}.jpg"


def test_pairs_are_counted(tmp_path: Path, panel: Panel) -> None:
    photos = {
        lfw("Ann_A", 1): (100, 9, 9),
        lfw("Ann_A", 2): (104, 9, 9),
        lfw("Bo_B", 1): (200, 9, 9),
        lfw("Bo_B", 2): (150, 9, 9),  # not alike: taken for another person
        lfw("Cy_C", 1): (103, 9, 9),  # like Ann: taken for her
        lfw("No_One", 1): (0, 0, 0),  # no face
    }
    pairs = ["10\t300", "Ann_A\t1\t2", "Bo_B\t1\t2", "Ann_A\t1\tBo_B\t1", "Ann_A\t2\tCy_C\t1"]
    pairs += ["Bo_B\t2\tCy_C\t1", "Bo_B\t1\tNo_One\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs) + "\n")
    lines: list[str] = []
    uri = archive(tmp_path / "faces.tar", photos)
    found = judges([uri], None, None, 300, lines.append, panel, AllButBlack())
    pairs_found = found["pairs"]
    assert (pairs_found["same"], pairs_found["apart"], pairs_found["without_face"]) == (2, 3, 1)
    assert pairs_found["right"] == pytest.approx(3 / 5) and pairs_found["judge"] == "by-red"
    assert (pairs_found["same_taken_for_two"], pairs_found["two_taken_for_one"]) == (1, 1)
    low, high = pairs_found["right_interval"]
    assert low < 0.6 < high and pairs_found["apart_distance"] == pytest.approx(47, abs=4)
    assert lines == [f"{uri}: 6 photos"] and "ages" not in found
    assert [card["name"] for card in found["judges"]] == ["by-red", "by-green"]


def test_smiles_are_compared_with_the_table(tmp_path: Path) -> None:
    photos = {
        lfw("Ann_A", 1): (9, 9, 250),
        lfw("Ann_A", 2): (9, 9, 200),  # serious, and taken for smiling
        lfw("Bo_B", 1): (9, 9, 20),
        lfw("No_One", 1): (0, 0, 0),  # no face
    }
    table = ["file,smile", "Ann_A_0001.jpg,1", "Ann_A_0002.jpg,0", "Bo_B_0001.jpg,0"]
    table += ["No_One_0001.jpg,1", "Not_There_0001.jpg,1"]
    (tmp_path / "smiles.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "pairs.txt").write_text("10\t300\nAnn_A\t1\t2\nAnn_A\t1\tBo_B\t1\n")
    uri = archive(tmp_path / "faces.tar", photos)
    panel = Panel(identity=(ByRed(),), attributes=(ByGreen(), SmilesInBlue()))  # type: ignore[arg-type]
    smiles = str(tmp_path / "smiles.csv")
    found = judges([uri], None, smiles, 300, print, panel, AllButBlack())["smiles"]
    assert (found["judge"], found["photos"], found["without_face"]) == ("smiles-in-blue", 3, 1)
    assert found["right"] == pytest.approx(2 / 3)
    assert found["read_smiling"] == pytest.approx(250 / 255, abs=0.02)


def test_ages_are_compared_with_the_names(tmp_path: Path, panel: Panel) -> None:
    photos = {
        "utk/30_0_2_20170104.jpg": (9, 33, 9),  # 3 years too old
        "utk/50_1_0_20170105.jpg": (9, 45, 250),  # 5 years too young
        "utk/8_1_0_20170106.jpg.chip.jpg": (9, 8, 9),  # a woman taken for a man
        "utk/40_0_0_20170107.jpg": (0, 0, 0),  # no face
    }
    uri = archive(tmp_path / "utk.tar", photos)
    read = judges([uri], None, None, 300, print, panel, AllButBlack())["ages"]
    assert (read["photos"], read["without_face"]) == (3, 1)
    assert read["error"] == pytest.approx(8 / 3, abs=0.7)
    assert read["bias"] == pytest.approx(-2 / 3, abs=0.7)
    assert read["gender_right"] == pytest.approx(2 / 3)
    assert {band: own["photos"] for band, own in read["by_age"].items()} == {
        "0 to 19": 1,
        "20 to 39": 1,
        "40 to 59": 1,
    }
    assert read["by_age"]["0 to 19"]["gender_right"] == 0
    one = judges([uri], None, None, 1, print, panel, AllButBlack())["ages"]
    assert one["photos"] + one["without_face"] == 2
    assert one == judges([uri], None, None, 1, print, panel, AllButBlack())["ages"]


def test_other_photos_are_refused(tmp_path: Path, panel: Panel) -> None:
    uri = archive(tmp_path / "holiday.tar", {"beach.jpg": (1, 2, 3)})
    with pytest.raises(ValueError, match=r"whose 1 files have other names; expected LFW's"):
        judges([uri], None, None, 2, print, panel, AllButBlack())


def test_pairs_txt() -> None:
    same, apart = read_pairs("10\t300\nA_B\t1\t4\nA_B\t1\tC\t12\n\n")
    assert same == [("A_B/A_B_0001", "A_B/A_B_0004")] and apart == [("A_B/A_B_0001", "C/C_0012")]
