"""All rows of `bench gpu`.

Each runs the product's own code on a base of random weights in bfloat16. A share compares with
the bare denoiser at the same size and rows, one forward after the other.
"""

from __future__ import annotations

from bs_ray.bench.gpu.editing import edit, locked, serve
from bs_ray.bench.gpu.forward import channels_last, compiled, forward
from bs_ray.bench.gpu.precision import precision, profiled
from bs_ray.bench.gpu.run import Row
from bs_ray.bench.gpu.training import (
    planned,
    preview,
    resume_torch,
    resume_zero_0,
    resume_zero_2,
    resume_zero_3,
    train_half,
    train_whole,
)

ROWS: tuple[Row, ...] = (
    Row("bare forward", 6, forward),
    Row("train", 12, train_half),
    Row("resume torch", 6, resume_torch),
    Row("resume ZeRO 0", 8, resume_zero_0),
    Row("resume ZeRO 2", 6, resume_zero_2),
    Row("edit", 12, edit),
    Row("engine", 10, serve),
    Row("preview", 6, preview),
    Row("profile", 6, profiled),
    Row("locked", 12, locked),
    Row("channels_last", 6, channels_last),
    Row("precision", 12, precision),
    Row("resume ZeRO 3", 10, resume_zero_3),
    Row("train whole", 12, train_whole),
    Row("plan", 0, planned),
    Row("compile", 15, compiled),
)
"""In order of their value: the last ones are left out first."""
