"""The plots of a report, as PNG files. They compute no figure anew."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bs_ray.evaluate.arms import Arm
from bs_ray.evaluate.grid import Grid

_DPI = 160


def response_curve(arm: Arm, table: pd.DataFrame, found: Mapping[str, Any]) -> bytes:
    """What a slider should move against its strength; found: its figures by split."""
    figure, axes = _axes()
    label = ""
    for split, own in found.items():
        if label and label != measured(own):
            continue  # another judge, another axis
        label = measured(own)
        grid = Grid.of(table, split, arm)
        curve = grid.column(own["measure"])
        low, high = np.percentile(curve, [10, 90], axis=0)
        (line,) = axes.plot(grid.strengths, curve.mean(0), "o-", ms=4, label=split)
        axes.fill_between(grid.strengths, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="strength", ylabel=label)
    axes.legend(frameon=False)
    return _png(figure)


def measured(own: Mapping[str, Any]) -> str:
    """The judge's reading that a slider should move, and its unit."""
    return f"{own['measure']} ({own['unit']})"


def moves(found: Mapping[str, Any]) -> bytes | None:
    """How far every other reading moves from -1 to +1; None for fewer than two, as the table has
    them."""
    names = list(dict.fromkeys(name for own in found.values() for name in own["drifts"]))
    if len(names) < 2:
        return None
    figure, axes = _axes()
    width = 0.8 / len(found)
    for place, (split, own) in enumerate(found.items()):
        heights = [own["drifts"].get(name, 0.0) for name in names]
        axes.bar(np.arange(len(names)) + place * width, heights, width, label=split)
    ticks = [name.rpartition("/")[2] for name in names]
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, ticks, rotation=45, ha="right")
    axes.set_ylabel("mean |move|, −1 to +1")
    if len(found) > 1:
        axes.legend(frameon=False)
    return _png(figure)


def fronts(responses: Mapping[str, Any], unit: str, effect: float | None) -> bytes:
    """Every arm's harms against its effect; the arm nearest to the lower right is best.

    responses: by arm, the lists `effect` and, by name, `harms`, over the sizes.
    """
    from bs_ray.evaluate.matched import HARMS

    first = next(iter(responses.values()))
    harms = [n for n in HARMS if n in first["harms"] and np.isfinite(first["harms"][n]).all()]
    figure = Figure(figsize=(4.4 * max(1, len(harms)), 3.6), layout="constrained")
    for place, harm in enumerate(harms, start=1):
        axes = figure.add_subplot(1, len(harms), place)
        _bare(axes)
        for number, (name, one) in enumerate(responses.items()):
            marker = "os^Dvp*"[number % 7]
            axes.plot(one["effect"], one["harms"][harm], f"{marker}-", ms=4, label=name)
        if effect is not None:
            axes.axvline(effect, color="gray", lw=0.8, ls=":")
        axes.set(xlabel=f"effect ({unit}), minus to plus", ylabel=HARMS[harm])
        axes.legend(frameon=False, fontsize="small")
    return _png(figure)


def interference(
    matrix: Mapping[str, Mapping[str, float]],
    own: Mapping[str, str],
    spreads: Mapping[str, float],
) -> bytes:
    """What every slider does to every reading.

    own: by slider, the name of what it should move, in bold. spreads: by reading, what a move is
    divided by for its colour.
    """
    sliders, readings = list(matrix), list(next(iter(matrix.values())))
    values = np.array([[matrix[s][r] for s in sliders] for r in readings], float)
    scale = np.array([[spreads[reading]] for reading in readings])
    height = 1.2 + 0.34 * len(readings)
    figure = Figure(figsize=(2.2 + 0.95 * len(sliders), height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values / scale, cmap="RdBu_r", vmin=-1.5, vmax=1.5, aspect="auto")
    for y, reading in enumerate(readings):
        for x, slider in enumerate(sliders):
            weight = "bold" if own[slider] == reading else "normal"
            axes.text(x, y, f"{values[y, x]:+.2f}", ha="center", va="center", weight=weight)
    axes.set_xticks(range(len(sliders)), sliders, rotation=30, ha="right")
    axes.set_yticks(range(len(readings)), readings)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
