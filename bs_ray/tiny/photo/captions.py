"""Captions of photographed faces, from labels and from what readers trained on them say.

A caption is a comma list, "a photo of a woman, smiling, 34 years old": some of the true phrases in
random order. A caption leaves out what is unknown or in between.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

#: attribute -> (below this, phrases), (above this, phrases); values lie in [0, 1].
PHRASES: dict[str, tuple[tuple[float, tuple[str, ...]], tuple[float, tuple[str, ...]]]] = {
    "smile": (
        (0.25, ("not smiling", "serious", "frowning")),
        (0.75, ("smiling", "happy", "smile")),
    ),
    "glasses": ((0.15, ("no glasses",)), (0.7, ("glasses", "wearing glasses"))),
    "beard": ((0.15, ("no beard", "shaved")), (0.7, ("beard", "bearded"))),
    "chubby": ((0.22, ("slim", "thin face")), (0.78, ("chubby", "round face", "fat"))),
    "mouth_open": ((0.1, ("closed mouth",)), (0.4, ("open mouth",))),
    "turned": ((0.2, ("looking left",)), (0.8, ("looking right",))),
    "grey": ((-1.0, ()), (0.9, ("black and white",))),
    "blurry": ((0.1, ("sharp",)), (0.9, ("blurry",))),
    "tight": ((0.5, ("head and hair",)), (0.5, ("close up",))),
    "distorted": (
        (0.5, ("well formed face", "undistorted face")),
        (0.5, ("distorted face", "deformed face")),
    ),
}
#: from this age on -> words for it; the last one that fits is said.
AGES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("baby",)),
    (3, ("child", "very young")),
    (13, ("teenager", "young")),
    (20, ("young", "young adult")),
    (36, ("middle aged",)),
    (58, ("old", "elderly", "wrinkled")),
)
OLDEST = 95
_YEARS_PER_WAY = 4
_PREFIXES = ("a photo of a", "a portrait of a", "a picture of a", "")
_NOUNS = {"man": ("man", "male"), "woman": ("woman", "female")}
_ANY = ("person", "face")
_MAX_PHRASES = 5
LABELS = ("age", "woman", *PHRASES)
"""What a caption is made of: age in years, the rest in [0, 1]; NaN where nobody knows."""


def vocabulary() -> list[str]:
    """Every word a caption may hold, sorted (the tokenizer's whole words)."""
    phrases = [p for ends in PHRASES.values() for _, words in ends for p in words]
    ages = [p for _, words in AGES for p in words]
    numbers = [str(n) for n in range(OLDEST + 1)]
    nouns = [noun for group in _NOUNS.values() for noun in group]
    rest = ["years old", "and with the", *_ANY, *_PREFIXES]
    text = " ".join([*phrases, *ages, *numbers, *nouns, *rest])
    return sorted(set(text.split()))


def slots() -> dict[str, int]:
    """What a caption can say, and in how many ways (0 always means that it does not say it)."""
    years = OLDEST // _YEARS_PER_WAY + 2
    return {"noun": 3, "age": len(AGES) + 1, "years": years, **dict.fromkeys(PHRASES, 3)}


def slot_values(caption: str) -> list[int]:
    """What a caption says, one number for each slot: the text towers learn to read this back."""
    found = dict.fromkeys(slots(), 0)
    head, *rest = caption.split(", ")
    noun = head.rpartition(" ")[2]
    found["noun"] = next((i for i, n in enumerate(_NOUNS, 1) if noun in _NOUNS[n]), 0)
    for phrase in rest:
        if phrase.endswith("years old"):
            found["years"] = int(phrase.split()[0]) // _YEARS_PER_WAY + 1
        for way, (_, words) in enumerate(AGES, start=1):
            if phrase in words:
                found["age"] = way
        for name, ends in PHRASES.items():
            for way, (_, words) in enumerate(ends, start=1):
                if phrase in words:
                    found[name] = way
    return list(found.values())


def phrases(labels: Mapping[str, float], rng: random.Random) -> list[str]:
    """All true phrases about one face but its noun, wording drawn by `rng`.

    labels: by name of LABELS; NaN compares false, so what is unknown goes unsaid.
    """
    found = []
    age = labels["age"]
    if age >= 0:
        found.append(rng.choice([words for low, words in AGES if age >= low][-1]))
        found.append(f"{min(OLDEST, round(age))} years old")
    for name, ((low, below), (high, above)) in PHRASES.items():
        if labels[name] < low:
            found.append(rng.choice(below))
        elif labels[name] > high:
            found.append(rng.choice(above))
    return found


def caption(labels: Mapping[str, float], rng: random.Random) -> str:
    """A random true caption: 1 to 5 of its phrases in random order, most often three or four."""
    found = phrases(labels, rng)
    distorted = [p for p in found if p in PHRASES["distorted"][1][1]]
    found = [p for p in found if p not in distorted]
    rng.shuffle(found)
    # A distortion is always said: where it is not, the base must learn faces as they are.
    found = distorted + found[: rng.randint(1, _MAX_PHRASES) - len(distorted)]
    rng.shuffle(found)
    woman = labels["woman"]
    own = _NOUNS["woman"] if woman > 0.7 else _NOUNS["man"] if woman < 0.3 else _ANY
    noun = rng.choice(own if rng.random() < 0.75 else _ANY)
    return ", ".join([f"{rng.choice(_PREFIXES)} {noun}".strip(), *found])


def all_phrases() -> Sequence[str]:
    """Each phrase once, numbers included, in a fixed order: for tables of token ids."""
    words = [p for _, group in AGES for p in group]
    words += [p for ends in PHRASES.values() for _, group in ends for p in group]
    return list(dict.fromkeys([*words, *(f"{n} years old" for n in range(OLDEST + 1))]))
