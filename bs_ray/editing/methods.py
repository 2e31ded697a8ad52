"""The edit methods by name, all with one face: (Work, EditorSettings) -> Steps."""

from __future__ import annotations

from collections.abc import Callable

from bs_ray.config import EditorSettings
from bs_ray.editing.displacement import displacement
from bs_ray.editing.friendly import edit_friendly
from bs_ray.editing.inversion import ddim_inversion, null_text
from bs_ray.editing.sdedit import sdedit
from bs_ray.editing.steps import Steps
from bs_ray.editing.work import Work

METHODS: dict[str, Callable[[Work, EditorSettings], Steps]] = {
    "displacement": displacement,
    "sdedit": sdedit,
    "ddim_inversion": ddim_inversion,
    "edit_friendly": edit_friendly,
    "null_text": null_text,
}


def queries(settings: EditorSettings) -> int:
    """How many queries the settings' method asks of the denoiser, for forecasts and progress.

    null_text also differentiates through it on its way, which counts for none.
    """
    a_step = {
        "ddim_inversion": 2 + settings.fixed_point,
        "edit_friendly": 2,
        "null_text": 2,
    }
    return settings.steps * a_step.get(settings.method, 1)
