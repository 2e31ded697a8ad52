"""The loop that a user would write without bs_ray: diffusers and Pillow, photo by photo."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store


def plain_loop(base: Path, slider: Slider, source: Store, output: Store, steps: int) -> None:
    """Edit photos by diffusers' img2img, with `steps` guided steps each: 2 x steps evaluations.

    Photos are resized to the base's size, and lose their EXIF, as in such loops.
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
    start = 0.6
    for entry in source.list():
        photo = Image.open(io.BytesIO(source.read(entry.key))).convert("RGB")
        edited = pipe(
            prompt=slider.card.target,
            image=photo.resize((side, side)),
            strength=start,
            num_inference_steps=round(steps / start),
            guidance_scale=7.5,
        ).images[0]
        file = io.BytesIO()
        edited.resize(photo.size).save(file, "JPEG", quality=95)
        output.write(entry.key, file.getvalue())
