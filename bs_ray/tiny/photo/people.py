"""Whom a photo of LFW or UTKFace shows, by its name, and whom no network that ships has seen."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

UTKFACE = re.compile(r"(\d+)_([01])_\d+_\d+.*\.jpg")
"""AGE_GENDER_RACE_DATE: gender 0 is a man, 1 a woman. Race is not used."""
LFW = re.compile(r"(.+)_\d{4}\.jpg")
"""Name_Name_0001.jpg, in the folder Name_Name."""


def person_of(key: str) -> str | None:
    """Who is seen: LFW's name, or for UTKFace, which has none, the file's; None for a photo that is
    named like neither."""
    file = PurePosixPath(key)
    if UTKFACE.fullmatch(file.name):
        return file.name
    name = LFW.fullmatch(file.name)
    return file.parent.name if name and name[1] == file.parent.name else None


def held_out(person: str) -> bool:
    """Whether no network that ships may train on this person: a fixed tenth by name."""
    return int(hashlib.sha256(person.encode()).hexdigest(), 16) % 10 == 0
