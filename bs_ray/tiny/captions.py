"""Captions of the tiny world, from the same attributes as the pictures.

A caption is a comma list, "a photo of a woman, smiling, long hair, on a blue background": some of
the true phrases, in random order. Attributes near the middle of their range go unmentioned.
"""

from __future__ import annotations

import random

from bs_ray.tiny.faces import PALETTE, Scene, palette_index

#: attribute -> (phrases for the low end, phrases for the high end); the first one is canonical.
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "smile": (("frowning", "sad", "unhappy"), ("smiling", "happy", "smile")),
    "age": (("young", "smooth skin"), ("old", "wrinkled", "elderly")),
    "chubby": (("slim", "thin face"), ("chubby", "round face", "fat")),
    "glasses": (("no glasses",), ("glasses", "wearing glasses")),
    "hair_length": (("short hair",), ("long hair",)),
    "beard": (("no beard", "shaved"), ("beard", "bearded")),
    "hair_light": (("dark hair",), ("light hair", "blond hair")),
    "hair_hue": (("plain hair",), ("red hair",)),
    "skin": (("light skin", "pale"), ("dark skin",)),
    "eye_size": (("small eyes",), ("big eyes",)),
    "pose": (("looking left",), ("looking right",)),
    "light": (("light from the left",), ("light from the right",)),
}
_NOUNS = {"man": ("man", "person", "face"), "woman": ("woman", "person", "face")}
_PREFIXES = ("a photo of a", "a portrait of a", "a picture of a", "")
_LOW, _HIGH = 0.38, 0.62
_MAX_PHRASES = 8
_CLUTTER = "a cluttered background"


def vocabulary() -> list[str]:
    """Every word a caption may hold, sorted (the tokenizer's whole words)."""
    phrases = [p for ends in PHRASES.values() for end in ends for p in end]
    nouns = [noun for group in _NOUNS.values() for noun in group]
    scenery = [
        "on a background",
        "a cluttered background",
        "in a shirt",
        "and with the male female",
    ]
    text = " ".join([*phrases, *nouns, *_PREFIXES, *scenery, *PALETTE])
    return sorted(set(text.split()))


def slots() -> dict[str, int]:
    """What a caption can say, and in how many ways (0 always means that it does not say it)."""
    return {
        **dict.fromkeys(PHRASES, 3),
        "noun": 3,
        "background": len(PALETTE) + 2,
        "shirt": len(PALETTE) + 1,
    }


def slot_values(caption: str) -> list[int]:
    """What a caption says, one number per slot: the text towers learn to read this back."""
    found = dict.fromkeys(slots(), 0)
    head, *rest = caption.split(", ")
    found["noun"] = {"man": 1, "woman": 2}.get(head.rpartition(" ")[2], 0)
    for phrase in rest:
        for name, ends in PHRASES.items():
            for way, words in enumerate(ends, start=1):
                if phrase in words:
                    found[name] = way
        for way, colour in enumerate(PALETTE, start=1):
            if phrase == f"on a {colour} background":
                found["background"] = way
            if phrase == f"in a {colour} shirt":
                found["shirt"] = way
        if phrase == _CLUTTER:
            found["background"] = len(PALETTE) + 1
    return list(found.values())


def phrases(scene: Scene, row: int, rng: random.Random, cluttered: bool = False) -> list[str]:
    """All true phrases about one face, wording drawn by `rng`."""
    found = []
    for name, (low, high) in PHRASES.items():
        value = float(scene[name][row])
        if value < _LOW or value > _HIGH:
            found.append(rng.choice(high if value > _HIGH else low))
    colours = list(PALETTE)
    backdrop = colours[int(palette_index(scene["background"])[row])]
    shirt = colours[int(palette_index(scene["shirt"])[row])]
    found.append(_CLUTTER if cluttered else f"on a {backdrop} background")
    found.append(f"in a {shirt} shirt")
    return found


def caption(scene: Scene, row: int, rng: random.Random, cluttered: bool = False) -> str:
    """A random true caption of face `row`: 3 to 8 of its phrases in random order."""
    found = phrases(scene, row, rng, cluttered)
    rng.shuffle(found)
    found = found[: rng.randint(3, _MAX_PHRASES)]
    noun = rng.choice(_NOUNS["man" if float(scene["man"][row]) > 0.5 else "woman"])
    return ", ".join([f"{rng.choice(_PREFIXES)} {noun}".strip(), *found])
