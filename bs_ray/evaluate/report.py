"""The report: tables, plots and strips in one HTML page. It computes no figure anew."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, Template
from matplotlib.figure import Figure
from PIL import Image

from bs_ray import __version__
from bs_ray.config import EvalJob
from bs_ray.evaluate.compare import SHARES
from bs_ray.images.sheets import draw_strip

SPLITS = {
    "faces": "Held-out faces, edited",
    "wild": "In-the-wild photos, edited",
    "text": "Text-guided generation",
}
_COLUMNS = {
    "faces": ("N", "{:d}"),
    "effect": ("effect −1 → +1", "{:+.3f}"),
    "drift_other": ("drift of others", "{:.3f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "strictly_monotone_share": ("strictly", "{:.1%}"),
    "linearity": ("linearity r", "{:.3f}"),
    "identity": ("identity at ±1", "{:.3f}"),
    "perceptual": ("perceptual at ±1", "{:.4f}"),
    "clip_change": ("CLIP change", "{:+.2f}"),
    "zero_exact": ("zero exact", "{}"),
}


def render_report(
    job: EvalJob,
    figures: dict,
    table: pd.DataFrame,
    *,
    summary: dict | None = None,
    contact_sheet: bytes | None = None,
) -> str:
    """The page as HTML. `summary` (label -> value) and `contact_sheet` (a PNG) come from a demo."""
    return _template("report").render(
        title=f"bs_ray: {job.name}",
        job=job,
        version=__version__,
        summary=summary,
        contact_sheet=_data_uri(contact_sheet) if contact_sheet else None,
        columns=[label for label, _ in _COLUMNS.values()],
        sliders=[_slider_section(job, figures, table, name) for name in job.sliders],
        interference=_interference(job, figures["interference"]),
        base=figures.get("base"),
    )


def render_methods_report(job: EvalJob, figures: dict, table: pd.DataFrame) -> str:
    """The comparison of edit methods as HTML: the table, and one strip for each slider."""
    rows = [
        {**row, **{f"cost_{k}": v for k, v in figures["costs"][row["method"]].items()}}
        for row in figures["methods"]
    ]
    return _template("methods").render(
        title=f"bs_ray: {job.name}",
        job=job,
        version=__version__,
        rows=rows,
        missed=[m for m in figures["matched"] if not m["reached"]],
        strips=[
            {
                "image": _image_uri(_methods_strip(table, split, slider, list(job.methods))),
                "caption": f"{slider}, {SPLITS[split].lower()}: two of them at shares of "
                "the matched strength, a method a row",
            }
            for split in job.splits
            for slider in job.sliders
        ],
    )


def _template(name: str) -> Template:
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    return pages.get_template(f"evaluate/{name}.html.j2")


def _methods_strip(table: pd.DataFrame, split: str, slider: str, methods: list[str]) -> Image.Image:
    """The first two kept faces under every method."""
    kept = table[
        (table["setting"] == split) & (table["slider"] == slider) & table["picture"].notna()
    ]
    lines = []
    for method in methods:
        own = kept[kept["method"] == method].sort_values(["face", "place"])
        own = own[own["face"].isin(sorted(own["face"].unique())[:2])]
        lines.append([np.frombuffer(p, np.uint8).reshape(64, 64, 3) for p in own["picture"]])
    columns = [f"{share:+g}" if share else "0" for share in SHARES] * 2
    return draw_strip(lines, columns, [str(n + 1) for n in range(len(methods))], slider)


def _slider_section(job: EvalJob, figures: dict, table: pd.DataFrame, slider: str) -> dict:
    rows = table[table["slider"] == slider]
    found = figures["sliders"][slider]
    splits = [split for split in SPLITS if split in found]
    shown = ", ".join(f"{strength:g}" for strength in job.strengths)
    return {
        "name": slider,
        "attribute": job.sliders[slider],
        "rows": [
            {
                "setting": SPLITS[s],
                "cells": [_cell(found[s][key], form) for key, (_, form) in _COLUMNS.items()],
            }
            for s in splits
        ],
        "plot": _plot(
            job, rows, splits, job.sliders[slider], list(figures["interference"][slider])
        ),
        "strips": [
            {
                "image": _image_uri(strip(rows[rows["setting"] == s])),
                "caption": f"{SPLITS[s]}: strengths {shown}, one face a row",
            }
            for s in splits
        ],
    }


def _interference(job: EvalJob, moves: dict[str, dict[str, float]]) -> str:
    """Sliders against attributes: the mean move from -1 to +1, as a coloured table."""
    attributes = list(next(iter(moves.values())))
    grid = np.array([[row[name] for name in attributes] for row in moves.values()])
    figure = Figure(figsize=(10, 1.6 + 0.4 * len(moves)), layout="constrained")
    axes = figure.subplots()
    largest = max(float(np.abs(grid).max()), 1e-6)
    axes.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(attributes)), attributes, rotation=45, ha="right")
    axes.set_yticks(range(len(moves)), list(moves))
    for (row, column), value in np.ndenumerate(grid):
        own = attributes[column] == list(job.sliders.values())[row]
        dark = abs(value) > 0.6 * largest
        axes.text(
            column,
            row,
            f"{value:+.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            fontweight="bold" if own else "normal",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_uri(buffer.getvalue())


def _cell(value: float | bool, form: str) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else form.format(value)


def strip(rows: pd.DataFrame, scale: int = 2) -> Image.Image:
    """The kept pictures of one slider in one split: a row for each face, a column a strength."""
    kept = rows[rows["picture"].notna()]
    lines = []
    for _, face in kept.sort_values(["face", "strength"]).groupby("face"):
        side = int(face["picture_px"].iloc[0])
        lines.append(
            np.concatenate(
                [np.frombuffer(p, np.uint8).reshape(side, side, 3) for p in face["picture"]], axis=1
            )
        )
    # Two faces side by side keep the page short.
    half = (len(lines) + 1) // 2
    left, right = np.concatenate(lines[:half]), np.concatenate(lines[half:] or lines[:half])
    gap = np.full((len(left), 6, 3), 255, np.uint8)
    right = np.pad(right, ((0, len(left) - len(right)), (0, 0), (0, 0)), constant_values=255)
    picture = Image.fromarray(np.concatenate([left, gap, right], axis=1))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _plot(
    job: EvalJob, rows: pd.DataFrame, splits: list[str], slider: str, attributes: list[str]
) -> str:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    curve, bars = figure.subplots(1, 2)
    attribute = job.sliders[slider]
    own = attributes.index(attribute)
    width = 0.8 / len(splits)
    for place, split in enumerate(splits):
        part = rows[rows["setting"] == split]
        readings = np.stack(part["readings"].to_list()).reshape(
            -1, len(job.strengths), len(attributes)
        )
        low, high = np.percentile(readings[:, :, own], [10, 90], axis=0)
        (line,) = curve.plot(job.strengths, readings[:, :, own].mean(0), "o-", ms=4, label=split)
        curve.fill_between(job.strengths, low, high, alpha=0.15, color=line.get_color())
        move = readings[:, job.strengths.index(1)] - readings[:, job.strengths.index(-1)]
        bars.bar(np.arange(len(attributes)) + place * width, np.abs(move).mean(0), width)
    curve.set(xlabel="strength", ylabel=f"reader: {attribute}")
    curve.legend(frameon=False)
    bars.set_xticks(
        np.arange(len(attributes)) + 0.4 - width / 2, attributes, rotation=45, ha="right"
    )
    bars.set_ylabel("mean |move|, −1 → +1")
    for axes in (curve, bars):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _data_uri(buffer.getvalue())


def _image_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
