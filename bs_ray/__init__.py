"""Continuous attribute sliders (LoRA) for diffusion models, trained, applied and served on Ray.

The rooms, nouns below and verbs above. `config` holds every knob and `storage` is one face for
folders, s3:// and the like. `models` is what a diffusion model can do, `data` is the rows on their
way, `sliders` is weights that move one attribute, `tiny` is a small trained base that ships inside
the package, and `editing` changes one batch of pictures. On top stand the verbs `train`, `batch`,
`serve` and `evaluate`, and `cli` names them. Imports run from the verbs down, never up.
"""

from bs_ray import _torchvision

__version__ = "0.1.0"

_torchvision.install()
