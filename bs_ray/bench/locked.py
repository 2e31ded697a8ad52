"""The server that a user would write without bs_ray: FastAPI, diffusers, a lock."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import warnings
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form

_START = 0.6


def app(base: str, sliders: Path, steps: int) -> Any:
    """A server of POST /v1/images/edits, whose form has `image` and `sliders` as in bs_ray's API.

    sliders: a folder of .safetensors files, all of which are loaded as adapters at the start. An
    edit is SDEdit by img2img with `steps` guided steps, which are 2 x steps evaluations: as many as
    a fast edit of bs_ray has.
    """
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from diffusers.utils import logging as diffusers_logging
    from PIL import Image
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # sliders have no keys of the text encoders
    warnings.filterwarnings("ignore", "Already found a `peft_config`")
    torch.set_num_threads(1)
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for file in sorted(sliders.glob("*.safetensors")):
        pipe.load_lora_weights(sliders, weight_name=file.name, adapter_name=file.stem)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    lock, server = threading.Lock(), FastAPI()

    def edit(image: Annotated[bytes, File()], sliders: Annotated[str, Form()]) -> dict[str, Any]:
        mix = {one["name"]: one["scale"] for one in json.loads(sliders)}
        photo = Image.open(io.BytesIO(image)).convert("RGB")
        with lock:
            pipe.set_adapters(list(mix), adapter_weights=list(mix.values()))
            edited = pipe(
                prompt="a photo of a person",
                image=photo.resize((side, side)),
                strength=_START,
                num_inference_steps=round(steps / _START),
                guidance_scale=7.5,
            ).images[0]
        file = io.BytesIO()
        edited.resize(photo.size).save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    server.post("/v1/images/edits")(edit)
    server.get("/readyz")(lambda: {"status": "ready"})
    return server


if __name__ == "__main__":
    import uvicorn

    folder, adapters, count, port = sys.argv[1:]
    served = app(folder, Path(adapters), int(count))
    uvicorn.run(served, host="127.0.0.1", port=int(port), log_level="warning")
