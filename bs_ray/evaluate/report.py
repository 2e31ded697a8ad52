"""The report: tables, plots and strips in one HTML file. It recomputes nothing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure
from PIL import Image

from bs_ray import __version__
from bs_ray.config import EvalJob

SETTINGS = {
    "faces": "Held-out faces, edited",
    "wild": "In-the-wild photos, edited",
    "text": "Text-guided generation",
}
_COLUMNS = {
    "faces": ("N", "{:d}"),
    "effect": ("effect −1 → +1", "{:+.3f}"),
    "drift_other": ("drift of others", "{:.3f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "linearity": ("linearity r", "{:.3f}"),
    "identity": ("identity at ±1", "{:.3f}"),
    "perceptual": ("perceptual at ±1", "{:.4f}"),
    "clip_change": ("CLIP change", "{:+.2f}"),
    "zero_exact": ("zero exact", "{}"),
}

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#1c2128, #e6e8eb); --soft: light-dark(#5b6470, #9aa4b0);
  --line: light-dark(#d9dee4, #363d46); --paper: light-dark(#fff, #15181c); --band: light-dark(#f5f7f9, #1d2127); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1040px;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--line) }
.soft { color: var(--soft) } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { background: var(--band) }
figure { margin: 1.2rem 0 } figcaption { color: var(--soft); font-size: .9rem }
img { max-width: 100%; image-rendering: pixelated } img.plot { image-rendering: auto; background: #fff; border-radius: 6px }
.scroll { overflow-x: auto }
</style></head><body>
<h1>{{ title }}</h1>
<p class="soft">Base <b>{{ job.base }}</b> · strengths {{ job.strengths | join(", ") }} · seed {{ job.seed }} ·
 bs_ray {{ version }}.{% if job.base == "tiny" %} The tiny base draws a procedural world of 64-pixel faces; every figure
 here is about that world and says nothing about SDXL.{% endif %}</p>
{% if summary %}<h2>Run</h2><div class="scroll"><table><tbody>
{% for name, value in summary.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</tbody></table></div>{% endif %}
{% if contact_sheet %}<h2>Batch edits of in-the-wild photos</h2>
<figure><img alt="Edited photos beside their originals" src="{{ contact_sheet }}">
<figcaption>Before and after, pairs.</figcaption></figure>{% endif %}
{% for slider in sliders %}
<h2>Slider “{{ slider.name }}” → {{ slider.attribute }}</h2>
<div class="scroll"><table><thead><tr><th>Setting</th>{% for c in columns %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in slider.rows %}<tr><td>{{ row.setting }}</td>{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<figure><img class="plot" alt="Reading against strength, and moves of all attributes" src="{{ slider.plot }}">
<figcaption>Left: the attribute reader's value against strength, mean and 10th–90th percentile of faces.
Right: mean absolute move of every attribute from −1 to +1.</figcaption></figure>
{% for strip in slider.strips %}<figure><img alt="{{ strip.caption }}" src="{{ strip.image }}">
<figcaption>{{ strip.caption }}</figcaption></figure>{% endfor %}
{% endfor %}
{% if base %}<h2>The base</h2>
<p>VAE round trip of held-out faces: <b>{{ "%.2f" | format(base.vae_psnr_db) }} dB</b> PSNR (peak 2), N = {{ base.images }}.</p>
<div class="scroll"><table><thead><tr><th>Attribute</th><th>captions come out true</th><th>reader r, originals</th><th>reader r, round trip</th></tr></thead>
<tbody>{% for name, r in base.read_original.items() %}<tr><td>{{ name }}</td>
<td>{{ "%.1f %%" | format(100 * base.class_accuracy[name]) if name in base.class_accuracy else "–" }}</td>
<td>{{ "%.3f" | format(r) }}</td><td>{{ "%.3f" | format(base.read_round_trip[name]) }}</td></tr>{% endfor %}</tbody></table></div>{% endif %}
<p class="soft">Effect, drift and monotonicity come from an attribute reader with range 1; identity is a cosine similarity;
zero exact means that strength 0 returned every input bit for bit. Every measurement: metrics.parquet.</p>
</body></html>
"""


def write_report(
    job: EvalJob, figures: dict, table: pd.DataFrame, path: Path, *, summary: dict | None = None,
    contact_sheet: Path | None = None,
) -> None:  # fmt: skip
    """Write the page. `summary` (label -> value) and `contact_sheet` come from a whole run."""
    page = Environment(autoescape=True).from_string(_TEMPLATE)
    path.write_text(
        page.render(
            title=f"bs_ray: {job.name}",
            job=job,
            version=__version__,
            summary=summary,
            contact_sheet=_data_uri(contact_sheet.read_bytes()) if contact_sheet else None,
            columns=[label for label, _ in _COLUMNS.values()],
            sliders=[_slider_section(job, figures, table, name) for name in job.sliders],
            base=figures.get("base"),
        ),
        encoding="utf-8",
    )


def _slider_section(job: EvalJob, figures: dict, table: pd.DataFrame, slider: str) -> dict:
    rows = table[table["slider"] == slider]
    found = figures["sliders"][slider]
    settings = [setting for setting in SETTINGS if setting in found]
    return {
        "name": slider,
        "attribute": job.sliders[slider],
        "rows": [
            {"setting": SETTINGS[s], "cells": [_cell(found[s][key], form) for key, (_, form) in _COLUMNS.items()]}
            for s in settings
        ],
        "plot": _plot(job, rows, settings, job.sliders[slider]),
        "strips": [
            {
                "image": _image_uri(strip(rows[rows["setting"] == s])),
                "caption": f"{SETTINGS[s]}: strengths {', '.join(f'{x:g}' for x in job.strengths)}, one face a row",
            }
            for s in settings
        ],
    }


def _cell(value, form: str) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else form.format(value)


def strip(rows: pd.DataFrame, scale: int = 2) -> Image.Image:
    """The kept pictures of one slider in one setting: a row per face, a column per strength."""
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


def _plot(job: EvalJob, rows: pd.DataFrame, settings: list[str], attribute: str) -> str:
    from bs_ray.tiny.faces import ATTRIBUTES

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    curve, bars = figure.subplots(1, 2)
    own = ATTRIBUTES.index(attribute)
    width = 0.8 / len(settings)
    for place, setting in enumerate(settings):
        part = rows[rows["setting"] == setting]
        readings = np.stack(part["readings"].to_list()).reshape(-1, len(job.strengths), len(ATTRIBUTES))
        low, high = np.percentile(readings[:, :, own], [10, 90], axis=0)
        (line,) = curve.plot(job.strengths, readings[:, :, own].mean(0), "o-", ms=4, label=setting)
        curve.fill_between(job.strengths, low, high, alpha=0.15, color=line.get_color())
        move = readings[:, job.strengths.index(1)] - readings[:, job.strengths.index(-1)]
        bars.bar(np.arange(len(ATTRIBUTES)) + place * width, np.abs(move).mean(0), width)
    curve.set(xlabel="strength", ylabel=f"reader: {attribute}")
    curve.legend(frameon=False)
    bars.set_xticks(np.arange(len(ATTRIBUTES)) + 0.4 - width / 2, ATTRIBUTES, rotation=45, ha="right")
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
