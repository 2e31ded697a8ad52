"""A folder's scheduler: which are known, and the noise schedule that its settings describe.

Only what a base was trained with is taken from it: betas, and what its output means. How a sampler
spaces its steps (`timestep_spacing`, `steps_offset`) belongs to that sampler; the one here always
ends at clean data and begins at the last timestep ("trailing"), which a schedule of zero terminal
SNR needs and every other takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler

from bs_ray.models.base import BaseNotFound
from bs_ray.models.diffusion import EpsPrediction, Prediction, VPrediction

_PREDICTIONS = {"epsilon": EpsPrediction, "v_prediction": VPrediction}
_DIFFUSION = {
    f"{name}Scheduler"
    for name in (
        *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "PNDM"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DDIM", "DDIMParallel", "DDPM"),
        *("DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep"),
        *("DPMSolverSDE", "SASolver", "UniPCMultistep", "LCM", "TCD"),
    )
}
_FLOW = {f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")}
_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""The settings that make a schedule, and SDXL's own values for those that a file leaves out."""


def diffusion_of(scheduler: Mapping[str, Any], folder: Path) -> Prediction:
    """The prediction that a scheduler's settings describe, its schedule computed by diffusers.

    folder: the base's, for messages. Raises BaseNotFound for EDM and for what nobody here knows.
    """
    _check_kind(scheduler, _DIFFUSION, folder)
    kind = scheduler.get("prediction_type", "epsilon")
    continuous = scheduler.get("timestep_type", "discrete") != "discrete"
    if kind not in _PREDICTIONS or continuous or scheduler.get("use_flow_sigmas"):
        found = "continuous timesteps" if continuous else f"prediction_type {kind}"
        raise BaseNotFound(
            f"base: got {folder}, whose scheduler has {found}; expected discrete timesteps and one "
            f"of {', '.join(_PREDICTIONS)}. Take another base"
        )
    settings: dict[str, Any] = {name: scheduler.get(name, usual) for name, usual in _BETAS.items()}
    try:
        alphas = EulerDiscreteScheduler(**settings).alphas_cumprod
    except NotImplementedError:
        raise BaseNotFound(
            f"base: got {folder}, whose scheduler has beta_schedule {settings['beta_schedule']}; "
            "expected linear, scaled_linear or squaredcos_cap_v2. Take another base"
        ) from None
    return _PREDICTIONS[kind](alphas)


def check_flow(scheduler: Mapping[str, Any], folder: Path) -> None:
    """Raise BaseNotFound unless these are the settings of a scheduler of flow matching."""
    _check_kind(scheduler, _FLOW, folder)
    if scheduler.get("invert_sigmas"):
        raise BaseNotFound(
            f"base: got {folder}, whose scheduler inverts its sigmas; expected noise at sigma 1. "
            "Take another base"
        )


def _check_kind(scheduler: Mapping[str, Any], known: set[str], folder: Path) -> None:
    name = scheduler.get("_class_name")
    if name is None or name in known:
        return
    edm = " (its noise levels are EDM's, which no family here has)" if "EDM" in name else ""
    raise BaseNotFound(
        f"base: got {folder}, whose scheduler is {name}{edm}; expected one of "
        f"{', '.join(sorted(known))}. Take another base"
    )
