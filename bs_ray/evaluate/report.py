"""The report: tables, plots and strips in one HTML page. It computes no figure anew."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, Template
from matplotlib.axes import Axes
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
_FIGURES = {
    "faces": ("N", "{:d}"),
    "effect": ("effect, −1 to +1", "{:+.3f}"),
    "drift_other": ("drift of others", "{:.3f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "strictly_monotone_share": ("strictly monotone", "{:.1%}"),
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
        sliders=[_slider_section(job, figures, table, name) for name in job.sliders],
        interference=_interference(job, figures["interference"]),
        interference_split=SPLITS[next(iter(job.splits))].lower(),
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
    names = list(figures["interference"][slider])
    return {
        "name": slider,
        "attribute": job.sliders[slider],
        "splits": [SPLITS[split] for split in splits],
        "figures": [
            (label, [_cell(found[split], split, key, form) for split in splits])
            for key, (label, form) in _FIGURES.items()
        ],
        "plots": [_curve(job, rows, splits, slider, names), _moves(job, rows, splits, names)],
        "strips": [
            {
                "images": [_image_uri(half) for half in strips(rows[rows["setting"] == split])],
                "caption": f"{SPLITS[split]}: strengths {shown}, one face a row",
            }
            for split in splits
        ],
    }


def _cell(found: dict, split: str, key: str, form: str) -> tuple[str, str]:
    """A figure and its interval, as text."""
    value, interval = found[key], found["intervals"].get(key)
    if key == "zero_exact":
        return "–" if split == "text" else "yes" if value else "no", ""
    between = " to ".join(map(form.format, interval)) if interval else ""
    return form.format(value), between


def _interference(job: EvalJob, moves: dict[str, dict[str, float]]) -> list[dict]:
    """A row for each attribute: how far every slider moves it, and how strongly that is coloured.

    `share` is the move as a share of the largest one.
    """
    attributes = list(next(iter(moves.values())))
    largest = max(abs(move) for row in moves.values() for move in row.values()) or 1.0
    return [
        {
            "attribute": name,
            "cells": [
                {
                    "move": moves[slider][name],
                    "share": moves[slider][name] / largest,
                    "own": own == name,
                }
                for slider, own in job.sliders.items()
            ],
        }
        for name in attributes
    ]


def strips(rows: pd.DataFrame, scale: int = 2) -> list[Image.Image]:
    """The kept pictures of one slider in one split: a row for each face, a column a strength.

    In two halves, which stand side by side where there is room.
    """
    kept = rows[rows["picture"].notna()]
    lines = []
    for _, face in kept.sort_values(["face", "strength"]).groupby("face"):
        side = int(face["picture_px"].iloc[0])
        lines.append(
            np.concatenate(
                [np.frombuffer(p, np.uint8).reshape(side, side, 3) for p in face["picture"]], axis=1
            )
        )
    half = (len(lines) + 1) // 2
    pictures = [
        Image.fromarray(np.concatenate(part)) for part in (lines[:half], lines[half:]) if part
    ]
    return [
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        for picture in pictures
    ]


def _curve(
    job: EvalJob, rows: pd.DataFrame, splits: list[str], slider: str, attributes: list[str]
) -> str:
    """The slider's own attribute against strength."""
    attribute = job.sliders[slider]
    figure, axes = _axes()
    for split in splits:
        readings = _readings(job, rows, split)[:, :, attributes.index(attribute)]
        low, high = np.percentile(readings, [10, 90], axis=0)
        (line,) = axes.plot(job.strengths, readings.mean(0), "o-", ms=4, label=split)
        axes.fill_between(job.strengths, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="strength", ylabel=f"reader: {attribute}")
    axes.legend(frameon=False)
    return _figure_uri(figure)


def _moves(job: EvalJob, rows: pd.DataFrame, splits: list[str], attributes: list[str]) -> str:
    """How far every attribute moves."""
    figure, axes = _axes()
    width = 0.8 / len(splits)
    for place, split in enumerate(splits):
        readings = _readings(job, rows, split)
        move = readings[:, job.strengths.index(1)] - readings[:, job.strengths.index(-1)]
        axes.bar(np.arange(len(attributes)) + place * width, np.abs(move).mean(0), width)
    axes.set_xticks(
        np.arange(len(attributes)) + 0.4 - width / 2, attributes, rotation=45, ha="right"
    )
    axes.set_ylabel("mean |move|, −1 to +1")
    return _figure_uri(figure)


def _readings(job: EvalJob, rows: pd.DataFrame, split: str) -> np.ndarray:
    """float [faces, strengths, attributes]."""
    values = np.stack(rows[rows["setting"] == split]["readings"].to_list())
    return values.reshape(-1, len(job.strengths), values.shape[-1])


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _figure_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return _data_uri(buffer.getvalue())


def _image_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
