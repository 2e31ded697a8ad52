"""The edit methods by name. Each is a function (EditContext, EditorSettings) -> EditGenerator.

A new method is such a function, a row in METHODS and a name in `EditorSettings.method`. Methods see
latents and a model; they may import editing/run.py, editing/context.py and models.
"""

from __future__ import annotations

from collections.abc import Callable

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods.displacement import displacement
from bs_ray.editing.methods.edit_friendly import edit_friendly
from bs_ray.editing.methods.inversion import ddim_inversion, null_text
from bs_ray.editing.methods.sdedit import sdedit
from bs_ray.editing.run import EditGenerator

Method = Callable[[EditContext, EditorSettings], EditGenerator]

METHODS: dict[str, Method] = {
    "displacement": displacement,
    "sdedit": sdedit,
    "ddim_inversion": ddim_inversion,
    "edit_friendly": edit_friendly,
    "null_text": null_text,
}


def request_count(settings: EditorSettings) -> int:
    """How many requests the settings' method makes, for forecasts and progress.

    null_text also differentiates through the denoiser on its way, which is not counted here.
    """
    a_step = {"ddim_inversion": 2 + settings.fixed_point, "edit_friendly": 2, "null_text": 2}
    return settings.steps * a_step.get(settings.method, 1)
