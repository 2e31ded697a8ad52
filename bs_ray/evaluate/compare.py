"""Edit methods side by side, each at the LoRA scale that moves the attribute equally far.

A method that moves little also harms little, so scales are matched first, on faces that no figure
uses; then each method is measured on the same held-out faces. Every part is kept, so that an
interrupted comparison can go on.

Legend: F faces, K scales (SHARES of the matched one), A attributes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from bs_ray.config import EvalJob
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.evaluate.sweep import STRIPS
from bs_ray.evaluate.variants import methods_of
from bs_ray.evaluate.worlds import open_world
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry

SHARES = (-1.0, 0.0, 1.0)
_GRID = (0.25, 0.5, 0.75, 1.0, 2.0)
"""LoRA scales, of either sign, among which the matched one is looked for."""
_MATCH_SEED = 1_000_000
_MATCH_FACES = 16
_WILD_ENLARGED = 2
"""In-the-wild photos are twice the base's size, since photos are larger than what bases edit."""
_TIMED_PHOTOS, _TIMED_REPEATS = 8, 3


@dataclass(frozen=True)
class Part:
    """Some faces of one split under one method, with one seed."""

    method: str
    split: str
    seed: int
    first: int
    count: int
    scales: dict[str, tuple[float, ...]]
    """Slider -> LoRA scales."""
    matching: bool = False

    @property
    def name(self) -> str:
        """A file name of its own."""
        kind = "match" if self.matching else f"seed{self.seed}"
        return f"{self.method}-{self.split}-{kind}-{self.first:05d}".replace(" ", "_")


def matching_parts(job: EvalJob) -> list[Part]:
    """Every method over the grid of scales, on faces that no figure uses."""
    grid = (*(-scale for scale in reversed(_GRID)), *_GRID)
    return [
        Part(
            method,
            split,
            job.seed,
            first,
            min(job.batch_size, _MATCH_FACES - first),
            dict.fromkeys(job.sliders, grid),
            matching=True,
        )
        for method in job.methods
        for split in job.splits
        for first in range(0, _MATCH_FACES, job.batch_size)
    ]


def measuring_parts(job: EvalJob, matched: dict[tuple[str, str, str], float]) -> list[Part]:
    """matched: (method, split, slider) -> the scale of share 1.

    The seeds take turns over the faces: a figure over all faces counts each once, and its spread
    over seeds contains the spread over faces.
    """
    return [
        Part(
            method,
            split,
            job.seed + turn % job.seeds,
            first,
            min(job.batch_size, count - first),
            {s: tuple(k * matched[method, split, s] for k in SHARES) for s in job.sliders},
        )
        for method in job.methods
        for split, count in job.splits.items()
        for turn, first in enumerate(range(0, count, job.batch_size))
    ]


def match(goal: float, scales: tuple[float, ...], readings: np.ndarray) -> tuple[float, float]:
    """(scale, effect): the least scale whose effect, from minus to plus, is the goal.

    scales: ascending, each with either sign; readings [F, len(scales)] of the attribute. Where no
    scale reaches the goal, the result is the one that comes nearest, with its effect.
    """
    half = len(scales) // 2
    one_sided = np.array([0.0, *scales[half:]])
    mean = readings.mean(0)
    effects = np.array([0.0, *(mean[half:] - mean[:half][::-1])])
    reached = np.flatnonzero(effects >= goal)
    if not len(reached):
        best = int(effects.argmax())
        return float(one_sided[best]), float(effects[best])
    at = int(reached[0])
    share = (goal - effects[at - 1]) / (effects[at] - effects[at - 1])
    return float(one_sided[at - 1] + share * (one_sided[at] - one_sided[at - 1])), goal


class Comparer:
    """Holds the base, the sliders and the world; works on one Part at a time."""

    def __init__(self, job: EvalJob):
        self.job = job
        self.model, self.world = load_base(job.base), open_world(job.base)
        self.sliders = {r: Registry(job.registry).resolve(r) for r in job.sliders}

    def editor(self, method: str) -> Editor:
        """Its strengths are LoRA scales, since methods are matched by what they do."""
        compared = self.job.methods[method]
        settings = compared.model_copy(update={"calibrated": False})
        sliders = list(self.sliders.values())
        return Editor(self.model, sliders, settings, methods=methods_of(compared))

    def photos(self, split: str, first: int, count: int, matching: bool) -> np.ndarray:
        """uint8 [F, H, W, 3]."""
        seed = self.job.seed + (_MATCH_SEED if matching else 0)
        return self.world.photos(split, first, count, seed, enlarged=_WILD_ENLARGED)

    def measure(self, part: Part) -> list[dict]:
        """One row for each face, slider and scale."""
        photos = self.photos(part.split, part.first, part.count, part.matching)
        # Scale 0 is the same for every slider: it is edited once.
        wanted = [
            ((self.sliders[slider].reference, scale),) if scale else ()
            for slider, scales in part.scales.items()
            for scale in scales
        ]
        distinct = list(dict.fromkeys(wanted))
        editor = self.editor(part.method)
        mixes = [editor.mix(dict(pairs)) for pairs in distinct]
        edits = [
            Edit(f"{part.split}-{part.first + i}", photo, mixes, part.seed)
            for i, photo in enumerate(photos)
        ]
        rows = []
        for i, outcome in enumerate(editor.edit(edits)):
            pictures = np.stack([to_uint8(out.pixels) for out in outputs_of(outcome)])
            pictures = pictures[[distinct.index(pairs) for pairs in wanted]]
            rows += self._judge(part, part.first + i, photos[i], pictures)
        editor.close()
        return rows

    @torch.no_grad()
    def _judge(self, part: Part, face: int, photo: np.ndarray, pictures: np.ndarray) -> list[dict]:
        """The pictures of one face against the photo itself."""
        seen, still = images_of(pictures), images_of(photo)[None]
        judges = self.world.judges
        scores = {
            "identity": judges.identity.similarity(seen, still),
            "perceptual_64": judges.perceptual.distance(seen, still),
            "perceptual_full": judges.perceptual.distance(seen, still, native=True),
        }
        readings = judges.reader.read(seen)
        photo_readings = judges.reader.read(still)[0].tolist()
        pixels = np.abs(pictures.astype(float) - photo).mean((1, 2, 3)) / 255
        named = [(slider, k) for slider, scales in part.scales.items() for k in range(len(scales))]
        return [
            {
                "part": part.name,
                "method": part.method,
                "setting": part.split,
                "seed": part.seed,
                "face": face,
                "slider": slider,
                "place": k,
                "scale": part.scales[slider][k],
                "readings": readings[index].tolist(),
                "photo_readings": photo_readings,
                "pixels": float(pixels[index]),
                "picture": _thumbnail(pictures[index]) if self._kept(part, face) else None,
                **{name: float(score[index]) for name, score in scores.items()},
            }
            for index, (slider, k) in enumerate(named)
        ]

    def _kept(self, part: Part, face: int) -> bool:
        return not part.matching and face < STRIPS and part.seed == self.job.seed

    def costs(self, report: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """By method: `evaluations` and `seconds` of one edit (median, methods in turn), and
        `seconds_spread`, the largest minus the least."""
        photos = self.photos("faces", 0, _TIMED_PHOTOS, matching=True)
        reference = next(iter(self.sliders.values())).reference
        taken: dict[str, list[float]] = {method: [] for method in self.job.methods}
        found: dict[str, dict[str, float]] = {}
        for turn in range(_TIMED_REPEATS):
            for method in self.job.methods:
                editor = self.editor(method)
                mixes = [editor.mix({reference: 1.0})]
                edits = [Edit(f"timed-{i}", photo, mixes) for i, photo in enumerate(photos)]
                start_s = time.perf_counter()
                editor.edit(edits)
                taken[method].append((time.perf_counter() - start_s) / len(edits))
                found[method] = {"evaluations": editor.evaluations / len(edits)}
                editor.close()
            report(f"timed {turn + 1} of {_TIMED_REPEATS} times")
        for method, seconds in taken.items():
            spread = max(seconds) - min(seconds)
            found[method] |= {"seconds": median(seconds), "seconds_spread": spread}
        return found


def _thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 [64, 64, 3] as bytes, for the report's strips."""
    image = images_of(pixels)[None]
    return pixels_of(F.interpolate(image, (64, 64), mode="bicubic", antialias=True)[0]).tobytes()
