"""What a base predicts with a slider, by this project and by plain diffusers."""

from pathlib import Path

import torch
from torch import Tensor

from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.exporting import export
from bs_ray.sliders.slider import Slider

STRENGTH = 0.8
MEASURED = Calibration(
    judge="a test",
    strengths=[-2.0, -1.0, 0.0, 1.0, 2.0],
    effect=[-1.5, -1.0, 0.0, 1.0, 2.0],
    drift=[0.0] * 5,
    unit=1.0,
    low=-1.5,
    high=2.0,
)


@torch.no_grad()
def probe(model: DiffusionModel) -> tuple[Tensor, Tensor, Condition]:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([100, 700]), model.embed(["a face", "a man"])


@torch.no_grad()
def ours(model: DiffusionModel, slider: Slider, strength: float = STRENGTH) -> Tensor:
    bank = SliderBank.of([slider])
    bank.attach(model.denoiser)
    x, t, condition = probe(model)
    with bank.scaled(torch.full((2, 1), strength)):
        out = model.predict(x, t, condition)
    bank.detach()
    return out


@torch.no_grad()
def by_unet(unet: torch.nn.Module, model: DiffusionModel) -> Tensor:
    """The prediction of diffusers' own UNet, with whatever it has loaded."""
    x, t, condition = probe(model)
    ids = torch.tensor([64, 64, 0, 0, 64, 64]).expand(2, 6).float()
    added = {"text_embeds": condition.pooled, "time_ids": ids}
    out: Tensor = unet(x, t, encoder_hidden_states=condition.tokens, added_cond_kwargs=added).sample
    return out


def written(slider: Slider, form: str, folder: Path, dtype: str = "fp32") -> Path:
    """The slider exported: its file, or its folder where there are several files."""
    files = export(slider, form, dtype)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder if len(files) > 1 else folder / next(iter(files))
