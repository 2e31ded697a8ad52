"""Continuous attribute sliders (LoRA) for diffusion models, trained, applied and served on Ray.

The rooms, each row importing from the rows above it (tests/test_imports.py):

- `config`, what a job file may say; `storage`, one interface to folders, s3:// and the like
- `models`, what a diffusion model can do; `images`, picture files in and out
- `judges`, networks that look at pictures; `datasets`, photos to train on; `sliders`, weights that
  move one attribute, and the bank that applies many of them at once
- `tiny`, small trained bases that ship inside the package, and their recipes
- `editing`, which changes one batch of pictures
- the verbs: `train`, `batch` (`bs-ray edit`), `serve`, `evaluate`
- `cli`, the commands; `demo`, `doctor`, `submit`; `bench`, the published figures
"""

from bs_ray import _torchvision

__version__ = "0.1.0"

_torchvision.install()
