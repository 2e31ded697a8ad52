"""The loop a user would write without us: diffusers, Pillow and the store's client, one by one."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store


def plain_loop(base: Path, slider: Slider, source: Store, output: Store, steps: int) -> None:
    """SDEdit by diffusers' img2img, `steps` guided steps a photo: 2 x steps evaluations.

    Photos are squeezed to the base's size, and lose their EXIF, as such loops have it.
    """
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from PIL import Image

    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "slider.safetensors").write_bytes(slider.to_bytes())
        pipe.load_lora_weights(folder, weight_name="slider.safetensors", adapter_name="slider")
    pipe.set_adapters("slider", adapter_weights=1.0)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    strength = 0.6
    for entry in source.list():
        photo = Image.open(io.BytesIO(source.read(entry.key))).convert("RGB")
        edited = pipe(
            prompt=slider.card.target,
            image=photo.resize((side, side)),
            strength=strength,
            num_inference_steps=round(steps / strength),
            guidance_scale=7.5,
        ).images[0]
        file = io.BytesIO()
        edited.resize(photo.size).save(file, "JPEG", quality=95)
        output.write(entry.key, file.getvalue())
