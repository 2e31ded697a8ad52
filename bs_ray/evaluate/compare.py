"""Edit methods side by side: every one at the strength that moves the attribute equally far.

A method that moves little also harms little, so strengths are matched first, on faces of their own;
then each method is measured on the same held-out faces, and every part is kept for a resume.

Legend: F faces, K strengths (SHARES of the matched one), A attributes.
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
from bs_ray.evaluate.sweep import HELD_OUT_SEED, STRIPS
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.judges.load import WorldJudges
from bs_ray.models import base_folder, load_base
from bs_ray.sliders.registry import Registry
from bs_ray.tiny import faces

SHARES = (-1.0, 0.0, 1.0)
_GRID = (0.25, 0.5, 0.75, 1.0, 2.0)
"""LoRA scales, either sign, at which strengths are matched."""
_MATCH_SEED = 2_000_000
_MATCH_FACES = 16
_WILD_ENLARGED = 2
"""In-the-wild photos are twice the base's size, as photos are: the edit is made smaller."""
_TIMED_PHOTOS, _TIMED_REPEATS = 8, 3


@dataclass(frozen=True)
class Part:
    """Some faces of one setting under one method, with one seed."""

    method: str
    setting: str
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
        return f"{self.method}-{self.setting}-{kind}-{self.first:05d}".replace(" ", "_")


def matching_parts(job: EvalJob) -> list[Part]:
    """Every method over the grid of scales, on faces that no figure uses."""
    grid = (*(-scale for scale in reversed(_GRID)), *_GRID)
    return [
        Part(
            method,
            setting,
            job.seed,
            first,
            min(job.batch_size, _MATCH_FACES - first),
            dict.fromkeys(job.sliders, grid),
            matching=True,
        )
        for method in job.methods
        for setting in job.settings
        for first in range(0, _MATCH_FACES, job.batch_size)
    ]


def measuring_parts(job: EvalJob, matched: dict[tuple[str, str, str], float]) -> list[Part]:
    """matched: (method, setting, slider) -> the scale of share 1.

    Each seed draws the noise of its own share of the faces, in turn: a figure over all of them has
    every face once, and its spread over seeds counts both.
    """
    return [
        Part(
            method,
            setting,
            job.seed + turn % job.seeds,
            first,
            min(job.batch_size, count - first),
            {s: tuple(k * matched[method, setting, s] for k in SHARES) for s in job.sliders},
        )
        for method in job.methods
        for setting, count in job.settings.items()
        for turn, first in enumerate(range(0, count, job.batch_size))
    ]


def match(goal: float, scales: tuple[float, ...], readings: np.ndarray) -> tuple[float, float]:
    """(scale, effect): the least scale whose effect, from minus to plus, is the goal.

    scales: ascending, either sign of each; readings [F, len(scales)] of the attribute. Where no
    scale reaches the goal, the one that comes nearest, and what it does.
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
    """Holds the base, the sliders and the judges; works on one Part at a time."""

    def __init__(self, job: EvalJob):
        self.job = job
        self.model = load_base(job.base)
        self.sliders = {r: Registry(job.registry).resolve(r) for r in job.sliders}
        self.judges = WorldJudges.load(base_folder(job.base))

    def editor(self, method: str) -> Editor:
        """Scales are the LoRA's own: methods are matched by what they do."""
        settings = self.job.methods[method].model_copy(update={"calibrated": False})
        return Editor(self.model, list(self.sliders.values()), settings)

    def photos(self, setting: str, first: int, count: int, seed: int) -> np.ndarray:
        """uint8 [F, H, W, 3]."""
        scene = faces.sample_scenes(count, seed + first)
        images = (
            faces.render_wild(scene, seed + first) if setting == "wild" else faces.render(scene)
        )
        if setting == "wild":
            images = F.interpolate(images, scale_factor=_WILD_ENLARGED, mode="bicubic").clamp(-1, 1)
        return pixels_of(images)

    def measure(self, part: Part) -> list[dict]:
        """One row for each face, slider and scale."""
        seed = (_MATCH_SEED if part.matching else HELD_OUT_SEED) + self.job.seed
        photos = self.photos(part.setting, part.first, part.count, seed)
        # Scale 0 is the same for every slider: it is edited once.
        wanted = [
            ((self.sliders[slider].card.name, scale),) if scale else ()
            for slider, scales in part.scales.items()
            for scale in scales
        ]
        mixes = list(dict.fromkeys(wanted))
        editor = self.editor(part.method)
        edits = [
            Edit(f"{part.setting}-{part.first + i}", photo, [dict(m) for m in mixes], part.seed)
            for i, photo in enumerate(photos)
        ]
        rows = []
        for i, outcome in enumerate(editor.edit(edits)):
            pictures = np.stack([to_uint8(out.pixels) for out in outputs_of(outcome)])
            pictures = pictures[[mixes.index(mix) for mix in wanted]]
            rows += self._judge(part, part.first + i, photos[i], pictures)
        editor.close()
        return rows

    @torch.no_grad()
    def _judge(self, part: Part, face: int, photo: np.ndarray, pictures: np.ndarray) -> list[dict]:
        """The pictures of one face against the photo itself."""
        seen, still = images_of(pictures), images_of(photo)[None]
        judges = self.judges
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
                "setting": part.setting,
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

    def costs(self, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """By method: `evaluations` and `seconds` of one edit (median, methods in turn), and
        `seconds_spread`, the largest minus the least."""
        photos = self.photos("faces", 0, _TIMED_PHOTOS, _MATCH_SEED)
        name = next(iter(self.sliders.values())).card.name
        edits = [Edit(f"timed-{i}", photo, [{name: 1.0}]) for i, photo in enumerate(photos)]
        taken: dict[str, list[float]] = {method: [] for method in self.job.methods}
        found: dict[str, dict[str, float]] = {}
        for turn in range(_TIMED_REPEATS):
            for method in self.job.methods:
                editor = self.editor(method)
                start_s = time.perf_counter()
                editor.edit(edits)
                taken[method].append((time.perf_counter() - start_s) / len(edits))
                found[method] = {"evaluations": editor.evaluations / len(edits)}
                editor.close()
            say(f"timed {turn + 1} of {_TIMED_REPEATS} times")
        for method, seconds in taken.items():
            spread = max(seconds) - min(seconds)
            found[method] |= {"seconds": median(seconds), "seconds_spread": spread}
        return found


def _thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 [64, 64, 3] as bytes, for the report's strips."""
    image = images_of(pixels)[None]
    return pixels_of(F.interpolate(image, (64, 64), mode="bicubic", antialias=True)[0]).tobytes()
