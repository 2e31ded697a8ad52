"""A run as a person sees it: curves, previews, and the early stop that follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bs_ray.models.judges import Judging
from bs_ray.sliders.artifact import Calibration
from bs_ray.train.calibrate import calibrate
from bs_ray.train.checkpoint import Progress
from bs_ray.train.engines import mean_over_workers
from bs_ray.train.preview import Plateau, Previewer, bank_predict
from bs_ray.train.step import Parts
from bs_ray.train.tracking import Tracker


@dataclass
class Watch:
    """Looks at a run after its steps. Every worker has one; only the first one's tracker is open.

    open_tracker(steps done) is called when the run begins or goes on.
    """

    parts: Parts
    judging: Judging
    open_tracker: Callable[[int], Tracker]
    shown: dict[str, float] = field(default_factory=dict)
    """Effect and drift of the last preview, for the progress bar."""
    _tracker: Tracker | None = None

    def __post_init__(self) -> None:
        job, parts = self.parts.job, self.parts
        pictured = [job.pairs.target] if job.pairs else []
        self.previewer = Previewer(
            parts.model,
            job.slider_names,
            [prompts.target for prompts in job.concepts.values()] or pictured,
            job.concepts,
            job.losses.eta,
            job.losses.max_strength,
            self.judging,
            parts.photos.latent_shape,
        )
        self.plateau = Plateau(job.early_stop) if job.early_stop else None
        self._predict = bank_predict(parts.model, parts.bank)

    def begin(self, progress: Progress) -> None:
        """Before the first step, or the first one after a resume."""
        if self.plateau:
            self.plateau.load(progress.plateau)
        if self.parts.rank == 0:
            self._tracker = self.open_tracker(progress.step)
            self._log(progress.step, {f"gap_{name}": gap for name, gap in progress.gaps.items()})

    def after_step(self, progress: Progress, numbers: dict[str, float]) -> bool:
        """Whether the run is to stop here. Every worker calls it and gets the same answer."""
        job, step = self.parts.job, progress.step
        self._log(step, numbers)
        due = step == job.steps or bool(job.preview_every and step % job.preview_every == 0)
        if not due:
            return False
        effect = self._preview(step)
        stop = self.plateau.update(effect) if self.plateau else False
        if self.plateau:
            progress.plateau = self.plateau.state()
        return stop

    def _preview(self, step: int) -> float:
        """Show all sliders; the mean of their effects, over all workers as well."""
        previews = self.previewer(step, self._predict)
        for name, preview in previews.items():
            alone = len(previews) == 1
            named = {(k if alone else f"{name}/{k}"): v for k, v in preview.numbers.items()}
            self._log(step, named)
            self.shown[f"effect{'' if alone else ' ' + name}"] = preview.effect
            if "drift" in preview.numbers:
                self.shown[f"drift{'' if alone else ' ' + name}"] = preview.numbers["drift"]
            if self._tracker:
                self._tracker.picture(step, name, preview.picture)
        # On the model's device: a GPU's process group (NCCL) reduces no tensor of the CPU.
        effects = torch.tensor(
            [preview.effect for preview in previews.values()], device=self.parts.model.device
        )
        return float(mean_over_workers(effects.mean()))

    def calibrations(self) -> dict[str, Calibration]:
        """What the finished sliders do over a range of strengths, by name; for every worker."""
        return calibrate(self.previewer, self._predict) if self.parts.job.calibrate else {}

    def saved(self) -> None:
        """A checkpoint has been made: what was logged is to be as safe."""
        if self._tracker:
            self._tracker.flush()

    def close(self) -> None:
        if self._tracker:
            self._tracker.close()

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if self._tracker and numbers:
            self._tracker.log(step, numbers)
