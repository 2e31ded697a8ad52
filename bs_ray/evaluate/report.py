"""The report: tables, plots and strips in one HTML page. It computes no figure anew."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from bs_ray import __version__
from bs_ray.config import EvalJob
from bs_ray.evaluate import plots, strips
from bs_ray.evaluate.arms import COMPARED, Arm, arms_of
from bs_ray.evaluate.bases import Sheet
from bs_ray.evaluate.figures import by_split
from bs_ray.evaluate.tables import BASE, FIGURES, cell, tables_of


def render_report(
    job: EvalJob,
    figures: dict,
    table: pd.DataFrame,
    sheets: Sequence[Sheet] = (),
    *,
    summary: dict | None = None,
    lead: str = "",
    contact_sheet: bytes | None = None,
) -> str:
    """The page as HTML. A demo brings `summary` (label -> value), `lead` (HTML for the beginning)
    and `contact_sheet` (a PNG)."""
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    found = tables_of(figures)
    arms = arms_of(job)
    return pages.get_template("evaluate/report.html.j2").render(
        title=f"bs_ray: {job.name}",
        job=job,
        version=__version__,
        summary=summary,
        lead=Markup(lead),
        contact_sheet=_data_uri(contact_sheet, "image/png") if contact_sheet else None,
        verdicts=_verdicts(figures),
        tables=[one for one in found if one.title not in ("Sliders", "Interference", BASE)],
        missed=[m for m in figures.get("matched", []) if not m["reached"]],
        comparisons=_comparisons(figures, table, arms),
        sliders=[] if job.methods else [_slider_section(job, figures, table, arm) for arm in arms],
        interference=_data_uri(_interference(figures), "image/png"),
        interference_split=figures["splits"][next(iter(job.splits))]["title"],
        splits=figures["splits"],
        judges=_judges(figures),
        absent=_absent(figures),
        trained_with=_trained_with(figures),
        base=figures.get("base"),
        base_tables=[one for one in found if one.title == BASE],
        sheets=[{"image": image_uri(one.image), "caption": one.caption} for one in sheets],
    )


def report_plots(job: EvalJob, figures: dict, table: pd.DataFrame) -> dict[str, bytes]:
    """The page's plots as files of their own: name -> PNG."""
    found = {"interference.png": _interference(figures)}
    for arm in [] if job.methods else arms_of(job):
        curve = plots.response_curve(arm, table, by_split(figures, arm.label))
        found[f"response-{_file_name(arm.label)}.png"] = curve
    for split, group, curves, unit, effect in _fronts(figures):
        name = _file_name(f"{split}-{group}")
        found[f"fronts-{name}.png"] = plots.fronts(curves, unit, effect)
    return found


def _file_name(label: str) -> str:
    return label.replace(" ", "-").replace(",", "")


def _verdicts(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        verdict
        for its in figures.get("comparisons", {}).values()
        for verdict in its["verdicts"].values()
    ]


def _fronts(figures: Mapping[str, Any]) -> list[tuple[str, str, dict, str, float | None]]:
    """(split, group, curves of its arms, unit, effect that they were brought to)."""
    found: list[tuple[str, str, dict, str, float | None]] = [
        (split, COMPARED, its["curves"], its["unit"], its["effect"])
        for split, its in figures.get("comparisons", {}).items()
    ]
    for split, groups in figures.get("curves", {}).items():
        for group, curves in groups.items():
            label = f"{group}, {next(iter(curves))}"
            unit = figures["sliders"].get(label, {}).get(split, {}).get("unit", "")
            found.append((split, group, curves, unit, figures["goals"][group]))
    return found


def _comparisons(figures: dict, table: pd.DataFrame, arms: list[Arm]) -> list[dict[str, Any]]:
    """Of every split and group: its fronts, and a strip with an arm a row."""
    sections = []
    for split, group, curves, unit, effect in _fronts(figures):
        rows = [arm for arm in arms if arm.group == group]
        strip = strips.side_by_side(table, split, rows, faces=max(1, 6 // len(rows)))
        sections.append(
            {
                "title": split if group == COMPARED else f"{group}, {split}",
                "fronts": _data_uri(plots.fronts(curves, unit, effect), "image/png"),
                "strip": image_uri(strip) if strip else None,
                "arms": [arm.name for arm in rows],
            }
        )
    return sections


def _slider_section(job: EvalJob, figures: dict, table: pd.DataFrame, arm: Arm) -> dict:
    found = by_split(figures, arm.label)
    shown = ", ".join(f"{strength:g}" for strength in job.strengths)
    titles = {split: its["title"] for split, its in figures["splits"].items()}
    drawn = [plots.response_curve(arm, table, found), plots.moves(found)]
    return {
        "name": arm.label,
        "measures": list(dict.fromkeys(plots.measured(own) for own in found.values())),
        "reference": next(iter(found.values()))["slider"],
        "splits": list(found),
        "left_out": {s: own["left_out"] for s, own in found.items() if own["left_out"]},
        "rows": [
            ((head,), [cell(own, key, form) for own in found.values()])
            for key, (head, form) in FIGURES.items()
            if any(own.get(key) is not None for own in found.values())
        ],
        "plots": [_data_uri(png, "image/png") for png in drawn if png],
        "strips": [
            {
                "images": [
                    image_uri(half) for half in strips.halves(strips.kept(table, split, arm))
                ],
                "caption": f"{titles[split]}: strengths {shown}, one face a row",
            }
            for split in found
        ],
    }


def _interference(figures: Mapping[str, Any]) -> bytes:
    first = next(iter(figures["splits"]))
    own = {name: splits[first]["reads"] for name, splits in figures["sliders"].items()}
    spreads = {one["name"]: one["spread"] for one in figures["splits"][first]["readings"]}
    return plots.interference(figures["interference"], own, spreads)


def _judges(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every judge once, with the splits that it looked at."""
    found: dict[str, dict[str, Any]] = {}
    for split, its in figures["splits"].items():
        for card in its["judges"]:
            found.setdefault(card["name"], {**card, "splits": []})["splits"].append(split)
    return list(found.values())


def _absent(figures: Mapping[str, Any]) -> list[str]:
    """Why public judges are not at hand, each once. A base's own are nothing to miss: only the tiny
    world's bases bring some."""
    reasons = {n: why for its in figures["splits"].values() for n, why in its["absent"].items()}
    return [why for name, why in reasons.items() if not name.startswith("own-")]


def _trained_with(figures: Mapping[str, Any]) -> dict[str, list[str]]:
    """Slider -> the judges that it was trained to please."""
    return {
        name: sorted({judge for own in splits.values() for judge in own["trained_with"]})
        for name, splits in ((name, by_split(figures, name)) for name in figures["sliders"])
        if any(own["trained_with"] for own in splits.values())
    }


def image_uri(image: Image.Image) -> str:
    """A picture that a page holds in itself."""
    return _data_uri(*strips.as_file(image))


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
