"""What a slider does so far: a strip of pictures, and numbers that can be read without looking.

A preview depends on the weights, the prompts and the seeds alone: it uses no global randomness and
computes no gradients.

Legend: M sliders, N seeds, K strengths; latents [B, C, h, w]; t int64 [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bs_ray.config import EarlyStop, Prompts
from bs_ray.editing.judged import mean_of, subjects
from bs_ray.images.faces import FaceDetector
from bs_ray.images.pixels import pixels_of
from bs_ray.images.sheets import draw_strip
from bs_ray.judges.judge import Subject, TextJudge
from bs_ray.judges.load import Panel
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import batch_noise, euler_path, guided
from bs_ray.sliders.bank import LATE_ACTIVATION, Predict
from bs_ray.train.targets.teacher import Teacher

SEEDS = (1, 2, 3)
STEPS, GUIDANCE = 10, 4.0
_HELD_OUT_TIMES = (0.1, 0.3, 0.5, 0.7)
"""The noise levels at which reach and leak are measured, as shares of the timesteps."""
_ROWS = 32  # rows of one forward pass


def missing_judges_message(judges: Panel) -> str | None:
    """What users should know about missing judges; None where none is missing."""
    if not judges.absent:
        return None
    return (
        f"previews: no judge {', '.join(judges.absent)}; what these would say is left out, and "
        "reach and leak show effect and drift. The setting `judges` names others"
    )


# --- previews ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Preview:
    """One slider at one step."""

    picture: Image.Image
    """RGB; rows: seeds, columns: strengths."""
    numbers: dict[str, float]
    """`reach_up`, `reach_down`, `leak` (text sliders) or `change` (pairs); where judged, `clip`,
    `drift` and `identity`. See `Previewer`."""

    @property
    def effect(self) -> float:
        """How far the slider moves its attribute: the mean reach; for image pairs `change`."""
        if "reach_up" in self.numbers:
            return (self.numbers["reach_up"] + self.numbers["reach_down"]) / 2
        return self.numbers["change"]


@dataclass
class Previewer:
    """Makes previews of all sliders of a run; what depends on the frozen base is computed once.

    - `reach_up`, `reach_down`: on held-out noisy latents at +S/2 and -S/2, how much of the target's
      change the slider makes: the projection of e_s - e_0 on s eta d, over |s eta d|^2; 1 is all.
    - `leak`: the norm of the rest of e_s - e_0, over |s eta d|.
    - `change`: |e_s - e_0| / |e_0| at S/2.
    - `clip`: CLIP score of the positive prompt minus that of the negative one, at +S/2 against
      -S/2, on the pictures; `drift`, `identity`: perceptual distance of the pictures at +-S/2 from
      the one at 0, and 1 less the identity judge's distance. Of each kind the first judge counts.

    With S = 2, S/2 is strength 1. Under ZeRO 3 every worker must call it, since each holds a share
    of the base.
    """

    model: DiffusionModel
    names: Sequence[str]
    """The bank's sliders, in its order."""
    targets: Sequence[str]
    """The prompt that each slider acts on (c_t)."""
    concepts: Mapping[str, Prompts] = field(default_factory=dict)
    """The sliders' prompts; empty for image pairs."""
    eta: float = 1.0
    max_strength: float = 2.0
    """S: strips show -S, -S/2, 0, S/2, S."""
    judges: Panel = field(default_factory=Panel)
    detector: FaceDetector | None = None
    """Finds the faces that judges look at, where they do."""
    latent_shape: tuple[int, int, int] | None = None
    """(C, h, w) of the pictures' latents; the base's native size where left out."""
    seeds: Sequence[int] = SEEDS
    steps: int = STEPS
    rows: int = _ROWS
    """Most rows of one forward pass."""
    _held_out: HeldOut | None = None

    def __call__(self, step: int, predict: Predict) -> dict[str, Preview]:
        """Previews by slider name, of the weights that `predict` uses now."""
        half = self.max_strength / 2
        strengths = [-2 * half, -half, 0.0, half, 2 * half]
        pictures = self.pictures(predict, strengths)
        found = {}
        for m, name in enumerate(self.names):
            numbers = self._responses(m, predict) | self._judged(m, pictures[m])
            title = f"{name}  step {step}  " + "  ".join(f"{k} {v:.2f}" for k, v in numbers.items())
            found[name] = Preview(strip(pictures[m], strengths, self.seeds, title), numbers)
        return found

    @torch.no_grad()
    def pictures(self, predict: Predict, strengths: Sequence[float]) -> Tensor:
        """Pictures [M, N, K, 3, H, W] in [-1, 1], on the CPU, generated from the target prompts."""
        count, n, k = len(self.names), len(self.seeds), len(strengths)
        lora_scales = torch.zeros(count, n, k, count)
        for m in range(count):
            lora_scales[m, :, :, m] = torch.tensor(strengths)
        latents = self._generate(predict, lora_scales.view(-1, count), n * k, k)
        images = [self.model.decode(part).clamp(-1, 1).cpu() for part in latents.split(self.rows)]
        return torch.cat(images).float().unflatten(0, (count, n, k))

    def _generate(self, predict: Predict, lora_scales: Tensor, each: int, same: int) -> Tensor:
        """Latents of rows with these LoRA scales [B, M]: `each` for a slider, `same` for a seed."""
        model, shape = self.model, self.latent_shape or self.model.latent_shape
        embedded = model.embed([*self.targets, ""])
        cond = embedded.rows(slice(0, -1)).repeat(each)
        uncond = embedded.rows(torch.full((len(lora_scales),), len(self.targets)))
        lora_scales = torch.cat([lora_scales, lora_scales]).to(model.device)
        start = LATE_ACTIVATION * model.prediction.num_train_timesteps

        def forward(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return self._in_parts(predict, x_t, t, condition, lora_scales * (t < start)[:, None])

        seeds = [seed for _ in self.targets for seed in self.seeds for _ in range(same)]
        x = batch_noise(shape, seeds, ["preview"] * len(seeds), 0).to(model.device)
        path = guided(forward, cond, uncond, GUIDANCE, model.guide)
        times = model.prediction.timesteps(self.steps)
        *_, (x0, _) = euler_path(model.prediction, path, x, times)
        return x0

    def _in_parts(
        self, predict: Predict, x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor
    ) -> Tensor:
        """`predict` in passes of at most `rows` rows."""
        parts = [slice(i, i + self.rows) for i in range(0, len(x_t), self.rows)]
        done = [predict(x_t[p], t[p], condition.rows(p), lora_scales[p]) for p in parts]
        return torch.cat(done)

    # --- on held-out noisy latents ----------------------------------------------------------------
    @property
    def held_out(self) -> HeldOut:
        """Noised pictures of the base and the teacher's predictions for them; made once."""
        if self._held_out is None:
            self._held_out = self._make_held_out()
        return self._held_out

    @torch.no_grad()
    def _make_held_out(self) -> HeldOut:
        """The base's own pictures for each target prompt, each noised to every level."""
        model, kind = self.model, self.model.prediction
        times, rows = len(_HELD_OUT_TIMES), len(self.seeds) * len(_HELD_OUT_TIMES)

        def base(x_t: Tensor, t: Tensor, condition: Condition, _: Tensor) -> Tensor:
            return model.predict(x_t, t, condition)

        none = torch.zeros(len(self.names) * len(self.seeds), len(self.names))
        x0 = self._generate(base, none, len(self.seeds), 1).repeat_interleave(times, 0)
        top = kind.num_train_timesteps
        moments = [int(share * top) for share in _HELD_OUT_TIMES]
        t = torch.tensor(moments * len(none), device=model.device)
        keys = [f"held-out/{moment}" for moment in moments] * len(none)
        seeds = [s for _ in self.names for s in self.seeds for _ in moments]
        noise = batch_noise(x0.shape[1:], seeds, keys, 0).to(model.device)
        x_t = kind.add_noise(x0, noise, t)
        condition = model.embed(list(self.targets)).repeat(rows)
        direction = self._directions(x_t, t, rows) if self.concepts else None
        return HeldOut(x_t, t, condition, direction, rows)

    def _directions(self, x_t: Tensor, t: Tensor, rows: int) -> Tensor:
        """eta (e(c+) - e(c-)) of each row's own slider: [M * rows, C, h, w]."""
        teacher, found = Teacher(self.model, self.concepts), []
        for m in range(len(self.names)):
            for first in range(m * rows, (m + 1) * rows, self.rows // 4):
                own = slice(first, min(first + self.rows // 4, (m + 1) * rows))
                output = teacher(x_t[own], t[own], torch.zeros_like(t[own]))
                found.append(self.eta * output.direction[m])
        return torch.cat(found)

    @torch.no_grad()
    def moved(self, slider: int, predict: Predict, strengths: Sequence[float]) -> Tensor:
        """e_s - e_0 of one slider on its held-out rows: [K, rows, C, h, w]."""
        mine, count = self.held_out.of(slider), len(strengths) + 1
        lora_scales = torch.zeros(count, mine.rows, len(self.names), device=mine.x_t.device)
        lora_scales[1:, :, slider] = torch.tensor(strengths, device=lora_scales.device)[:, None]
        x_t, t = mine.x_t.repeat(count, 1, 1, 1), mine.t.repeat(count)
        flat = self._in_parts(
            predict, x_t, t, mine.condition.tile(count), lora_scales.flatten(0, 1)
        )
        predicted = flat.unflatten(0, (count, mine.rows))
        return predicted[1:] - predicted[:1]

    def _responses(self, slider: int, predict: Predict) -> dict[str, float]:
        half = self.max_strength / 2
        direction = self.held_out.of(slider).direction
        moved = self.moved(slider, predict, [half, -half])
        if direction is None:
            x_t = self.held_out.of(slider).x_t
            return {"change": float(moved[0].norm() / x_t.norm())}
        up, leak_up = reach(moved[0], half * direction)
        down, leak_down = reach(moved[1], -half * direction)
        leak = float(torch.cat([leak_up, leak_down]).mean())
        return {"reach_up": float(up.mean()), "reach_down": float(down.mean()), "leak": leak}

    def _judged(self, slider: int, pictures: Tensor) -> dict[str, float]:
        """clip, drift and identity of pictures [N, 5, 3, H, W], each where its judge is at hand."""
        judges, found = self.judges, {}
        prompts = self.concepts.get(self.names[slider])
        moved = [[row[1], row[3]] for row in pixels_of(pictures)]
        pairs = list(zip(subjects(pictures, 2, self.detector), moved, strict=True))
        if judges.clip and prompts:
            scores = [attribute_score(judges.clip[0], *pair, prompts) for pair in pairs]
            found["clip"] = mean_of([high - low for low, high in scores])
        if judges.perceptual:
            found["drift"] = mean_of([judges.perceptual[0].distances(*pair) for pair in pairs])
        if judges.identity:
            found["identity"] = 1 - mean_of([judges.identity[0].distances(*p) for p in pairs])
        return {name: value for name, value in found.items() if np.isfinite(value)}


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, `rows` for each slider, one slider after another."""

    x_t: Tensor
    t: Tensor
    condition: Condition
    direction: Tensor | None
    """eta d, like x_t; None for image pairs."""
    rows: int

    def of(self, slider: int) -> HeldOut:
        """One slider's rows."""
        own = slice(slider * self.rows, (slider + 1) * self.rows)
        direction = None if self.direction is None else self.direction[own]
        return HeldOut(self.x_t[own], self.t[own], self.condition.rows(own), direction, self.rows)


def reach(moved: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(reach, leak), each [B]: the projection of `moved` on `direction`, and the norm of the rest.

    Both are in units of |direction|; the arguments are [B, ...]. (1, 0) is a slider that makes
    exactly the target's change.
    """
    moved, direction = moved.flatten(1), direction.flatten(1)
    share = (moved * direction).sum(1) / direction.square().sum(1)
    beside = moved - share[:, None] * direction
    return share, beside.norm(dim=1) / direction.norm(dim=1)


def attribute_score(
    clip: TextJudge, subject: Subject, pictures: Sequence[np.ndarray], prompts: Prompts
) -> np.ndarray:
    """CLIP score of the positive prompt minus that of the negative one, per picture [K]."""
    scores = clip.scores(subject, pictures, [prompts.positive, prompts.negative])
    return (scores[:, 0] - scores[:, 1]) * (1 if prompts.action == "enhance" else -1)


# --- the picture ---------------------------------------------------------------------------------
def strip(
    pictures: Tensor, strengths: Sequence[float], seeds: Sequence[int], title: str
) -> Image.Image:
    """Pictures [N, K, 3, H, W] in [-1, 1] as one RGB image: rows seeds, columns strengths."""
    columns = [f"{strength:+g}" if strength else "0" for strength in strengths]
    rows = [list(row) for row in pixels_of(pictures)]
    return draw_strip(rows, columns, [str(seed) for seed in seeds], title)


# --- early stop ----------------------------------------------------------------------------------
class Plateau:
    """Decides when previews no longer show progress (config.EarlyStop)."""

    def __init__(self, settings: EarlyStop):
        self.settings = settings
        self.best: float | None = None
        self.waited = 0

    def update(self, effect: float) -> bool:
        """Whether to stop, after one more preview with this effect."""
        gain = self.settings.min_gain * abs(self.best) if self.best is not None else 0.0
        if self.best is None or effect > self.best + gain:
            self.best, self.waited = effect, 0
        else:
            self.waited += 1
        return self.waited >= self.settings.patience

    def state(self) -> dict[str, float]:
        """What `load` continues from: finite numbers, for JSON."""
        if self.best is None:
            return {}
        return {"best": self.best, "waited": float(self.waited)}

    def load(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` gave."""
        self.best = state.get("best")
        self.waited = int(state.get("waited", 0))
