"""What a run shows: curves, previews, and the early stop that follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from bs_ray.images.faces import CenterFace
from bs_ray.judges.load import Panel
from bs_ray.sliders.calibration import Calibration
from bs_ray.train.checkpoint import Progress
from bs_ray.train.engines import mean_over_workers
from bs_ray.train.step import TrainState
from bs_ray.train.watching.calibrate import calibrate
from bs_ray.train.watching.preview import Plateau, Previewer
from bs_ray.train.watching.tracking import Tracker


@dataclass
class Watch:
    """Looks at a run after its steps. Every worker has one; only the first worker's tracker is
    open.

    open_tracker(steps done) is called when the run begins or resumes.
    """

    state: TrainState
    judges: Panel
    open_tracker: Callable[[int], Tracker]
    shown: dict[str, float] = field(default_factory=dict)
    """Effect and drift of the last preview, for the progress bar."""
    _tracker: Tracker | None = None

    def __post_init__(self) -> None:
        job, state = self.state.job, self.state
        subject = [job.pairs.target] if job.pairs else []
        self.previewer = Previewer(
            state.model,
            job.slider_names,
            [prompts.target for prompts in job.concepts.values()] or subject,
            job.concepts,
            job.losses.eta,
            job.losses.max_strength,
            self.judges,
            CenterFace() if self.judges.needs_faces else None,
            state.photos.latent_shape,
        )
        self.plateau = Plateau(job.early_stop) if job.early_stop else None
        # Where the base is in shards, a forward pass takes all workers.
        in_shards = job.engine == "deepspeed" and job.zero_stage == 3
        self._looks = state.rank == 0 or in_shards
        self._predict = partial(state.bank.predict, state.model)

    def begin(self, progress: Progress) -> None:
        """Call it before the first step, and before the first one after a resume."""
        if self.plateau:
            self.plateau.load(progress.plateau)
        if self.state.rank == 0:
            self._tracker = self.open_tracker(progress.step)
            self._log(progress.step, {f"gap_{name}": gap for name, gap in progress.gaps.items()})

    def after_step(self, progress: Progress, numbers: dict[str, float]) -> bool:
        """Whether the run is to stop here. Every worker calls it and gets the same answer."""
        job, step = self.state.job, progress.step
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
        """Show all sliders. Returns the mean of their effects, the same on all workers."""
        previews = self.previewer(step, self._predict) if self._looks else {}
        for name, preview in previews.items():
            alone = len(previews) == 1
            named = {(k if alone else f"{name}/{k}"): v for k, v in preview.numbers.items()}
            self._log(step, named)
            self.shown[f"effect{'' if alone else ' ' + name}"] = preview.effect
            if "drift" in preview.numbers:
                self.shown[f"drift{'' if alone else ' ' + name}"] = preview.numbers["drift"]
            if self._tracker:
                self._tracker.picture(step, name, preview.picture)
        effects = [preview.effect for preview in previews.values()]
        # On the model's device: a GPU's process group (NCCL) reduces no tensor of the CPU.
        looked = torch.tensor([sum(effects), len(effects)], device=self.state.model.device)
        total, count = mean_over_workers(looked.double()).tolist()
        return float(total / count)

    def calibrations(self) -> dict[str, Calibration]:
        """What the finished sliders do over a range of strengths, by name. Every worker calls
        it, and the first one's are the run's."""
        wanted = self.state.job.calibrate and self._looks
        return calibrate(self.previewer, self._predict) if wanted else {}

    def saved(self) -> None:
        """A checkpoint has been made, so make what was logged as safe as it is."""
        if self._tracker:
            self._tracker.flush()

    def close(self) -> None:
        if self._tracker:
            self._tracker.close()

    def _log(self, step: int, numbers: dict[str, float]) -> None:
        if self._tracker and numbers:
            self._tracker.log(step, numbers)
