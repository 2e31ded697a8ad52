"""The figures as tables, in the forms that people paste: Markdown, LaTeX, and CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bs_ray.evaluate.figures import by_split

FIGURES = {
    "faces": ("N", "{:d}"),
    "effect": ("effect, −1 to +1", "{:+#.3g}"),
    "drift_other": ("drift of others", "{:.3f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "strictly_monotone_share": ("strictly monotone", "{:.1%}"),
    "linearity": ("linearity r", "{:.3f}"),
    "identity": ("identity at ±1", "{:.3f}"),
    "identity_distance": ("identity distance at ±1", "{:.3f}"),
    "same_person_share": ("same person at ±1", "{:.1%}"),
    "perceptual": ("perceptual at ±1", "{:.4f}"),
    "step_spread": ("spread of steps", "{:.3f}"),
    "triangle_deficit": ("triangle deficit", "{:.3f}"),
    "clip_change": ("CLIP change", "{:+.2f}"),
    "zero_exact": ("zero exact", "{}"),
}
"""Figure of a slider -> its heading and format."""
AT_EFFECT = {
    "strength": ("strength", "{:.2f}"),
    "effect": ("effect", "{:+#.3g}"),
    "drift": ("drift of others", "{:.4f}"),
    "identity_distance": ("identity distance", "{:.4f}"),
    "perceptual": ("perceptual", "{:.4f}"),
    "monotone_share": ("monotone", "{:.1%}"),
}
METHODS = {
    "faces": ("N", "{:d}"),
    "seeds": ("seeds", "{:d}"),
    "effect": ("effect", "{:+.3f}"),
    "drift": ("drift of others", "{:.4f}"),
    "identity_distance": ("identity distance", "{:.4f}"),
    "perceptual": ("perceptual", "{:.4f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "drift_at_zero": ("drift at 0", "{:.4f}"),
}
COSTS = {"evaluations": ("evaluations", "{:.0f}"), "seconds": ("seconds", "{:.2f}")}


@dataclass(frozen=True)
class Cell:
    """A figure, as text and as numbers."""

    text: str
    between: str = ""
    """Its interval or spread."""
    value: Any = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """A heading for each column; the first ones name the row."""

    title: str
    names: Sequence[str]
    """Headings of what names a row."""
    heads: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Sequence[Cell]]]


def tables_of(figures: Mapping[str, Any]) -> list[Table]:
    """All tables of an evaluation."""
    found = []
    if "methods" in figures:
        found.append(_methods(figures))
    for split, its in figures.get("comparisons", {}).items():
        found.append(_comparison(figures, split, its))
    if "methods" not in figures:
        found.append(_sliders(figures))
    if "base" in figures:
        found.append(_base(figures["base"]))
    found.append(_interference(figures))
    return found


def cell(found: Mapping[str, Any], key: str, form: str) -> Cell:
    """A figure with its interval, as text."""
    value = found.get(key)
    if value is None:
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", value=value)
    ends = found.get("intervals", {}).get(key)
    if not ends:
        return Cell(form.format(value), value=value)
    return Cell(form.format(value), " to ".join(map(form.format, ends)), value, *ends)


def _present(figures: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> dict:
    """The figures that any of the rows has."""
    return {k: v for k, v in figures.items() if any(row.get(k) is not None for row in rows)}


def _sliders(figures: Mapping[str, Any]) -> Table:
    each = [(n, s, i) for n in figures["sliders"] for s, i in by_split(figures, n).items()]
    shown = _present(FIGURES, [its for _, _, its in each])
    rows = [
        ((name, split, its["unit"]), [cell(its, key, form) for key, (_, form) in shown.items()])
        for name, split, its in each
    ]
    heads = [head for head, _ in shown.values()]
    return Table("Sliders", ("slider", "split", "unit"), heads, rows)


def _comparison(figures: Mapping[str, Any], split: str, its: Mapping[str, Any]) -> Table:
    costs = figures.get("costs", {})
    arms = {name: {**arm, **costs.get(name, {})} for name, arm in its["arms"].items()}
    shown = _present(AT_EFFECT | COSTS, list(arms.values()))
    rows = [
        ((name,), [cell(arm, key, form) for key, (_, form) in shown.items()])
        for name, arm in arms.items()
    ]
    title = f"At the same effect on {split}: {its['effect']:#.3g} {its['unit']}, N = {its['faces']}"
    return Table(title, ("arm",), [head for head, _ in shown.values()], rows)


def _methods(figures: Mapping[str, Any]) -> Table:
    each = [{**row, **figures["costs"][row["method"]]} for row in figures["methods"]]
    shown = _present(METHODS | COSTS, each)
    rows = []
    for row in each:
        cells = []
        for key, (_, form) in shown.items():
            made, spread = cell(row, key, form), row["spread"].get(key)
            if spread and row["seeds"] > 1 and key in ("drift", "identity_distance"):
                made = Cell(made.text, f"± {form.format(spread)}", made.value)
            cells.append(made)
        rows.append(((row["method"], row["setting"]), cells))
    heads = [head for head, _ in shown.values()]
    return Table("Methods at the same effect", ("method", "split"), heads, rows)


def _interference(figures: Mapping[str, Any]) -> Table:
    matrix = figures["interference"]
    readings = list(next(iter(matrix.values())))
    rows = []
    for reading in readings:
        moves = [by_reading[reading] for by_reading in matrix.values()]
        rows.append(((reading,), [Cell(f"{move:+.2f}", value=move) for move in moves]))
    return Table("Interference", ("reading",), list(matrix), rows)


BASE = "The base"


def _base(its: Mapping[str, Any]) -> Table:
    """Round trips, and by attribute the share of captions that come out true; with what else was
    measured: how the tiny world's reader agrees with the truth, or how near photos are."""
    ends = {"vae_psnr_db": its["vae_psnr_interval"]}
    trips = cell({**its, "intervals": ends}, "vae_psnr_db", "{:.2f}")
    shares = {**its["class_accuracy"], "intervals": its["class_intervals"]}
    read = {head: its[key] for key, head in _READER.items() if key in its}
    absent = [Cell("–") for _ in read]
    rows: list[tuple[Sequence[str], Sequence[Cell]]] = [(("round trip, dB",), [trips, *absent])]
    for name in dict.fromkeys([*its["class_accuracy"], *its.get("read_original", {})]):
        agreed = [cell(by_name, name, "{:.3f}") for by_name in read.values()]
        rows.append(((f"captions: {name}",), [cell(shares, name, "{:.1%}"), *agreed]))
    rows += [((label,), [one]) for label, one in _near_photos(its)]
    return Table(BASE, ("figure",), ("value", *read), rows)


_READER = {
    "read_original": "reader r, originals",
    "read_round_trip": "reader r, round trip",
}


def _near_photos(its: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """What a base of photographs has further."""
    found = []
    if lost := its.get("without_face"):
        found.append(("generations without a face", cell(lost, "generations", "{:d}")))
    if apart := its.get("kid"):
        kid = Cell(f"{apart['mean']:.2e}", f"± {apart['sd']:.1e}", apart["mean"])
        found.append((f"KID by {apart['features']}", kid))
        found.append(("KID of real people", cell(apart, "of_photos", "{:.2e}")))
    near = its.get("nearest", {})
    for name in ("generations", "photos") if near else ():
        own = near[name]
        shares = {**own, "intervals": {"share_below": own.get("interval")}}
        to = f"{name}, nearest of {near['compared_with']} photos"
        found.append((f"{to}: median distance", cell(own, "median", "{:.3f}")))
        if "share_below" in own:
            limit = f"{to}: below {near['same_below']:g}"
            found.append((limit, cell(shares, "share_below", "{:.1%}")))
    return found


def terminal_table(figures: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of the tables that a terminal shows: without intervals, and without
    the columns for which 80 characters have no room."""
    found = []
    for table in tables_of(figures)[:-1]:
        shown = [n for n, head in enumerate(table.heads) if head in _ON_TERMINAL]
        heads = [*table.names, *(_ON_TERMINAL[table.heads[n]] for n in shown)]
        rows = [[*names, *(cells[n].text for n in shown)] for names, cells in table.rows]
        found.append((table.title, heads, rows))
    return found


_ON_TERMINAL = {
    "value": "value",
    "N": "N",
    "strength": "strength",
    "effect, −1 to +1": "effect",
    "effect": "effect",
    "drift of others": "drift",
    "identity distance at ±1": "identity",
    "identity distance": "identity",
    "perceptual": "LPIPS",
    "monotone": "monotone",
    "zero exact": "zero exact",
    "evaluations": "evals",
    "seconds": "s",
}
"""Heading -> what a terminal calls it."""


# --- in the forms that people paste ---------------------------------------------------------------


def to_markdown(tables: Sequence[Table]) -> str:
    """A heading and a table each."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    parts = []
    for table in tables:
        heads = [*table.names, *table.heads]
        rows = [line([*names, *(_with_interval(c) for c in cells)]) for names, cells in table.rows]
        parts.append(
            "\n".join([f"## {table.title}", "", line(heads), line(["---"] * len(heads)), *rows])
        )
    return "\n\n".join(parts) + "\n"


def _with_interval(one: Cell) -> str:
    return f"{one.text} ({one.between})" if one.between else one.text


_TEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"−": "$-$", "±": "$\\pm$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"\\": "\\textbackslash{}", "–": "--"}
)


def to_latex(tables: Sequence[Table]) -> str:
    """A `table` each, with the rules of the package booktabs; intervals are left to the CSV."""
    parts = []
    for table in tables:
        heads = [*table.names, *table.heads]
        lines = [
            "\\begin{table}",
            f"\\caption{{{table.title.translate(_TEX)}}}",
            f"\\begin{{tabular}}{{{'l' * len(table.names)}{'r' * len(table.heads)}}}",
            "\\toprule",
            " & ".join(head.translate(_TEX) for head in heads) + " \\\\",
            "\\midrule",
        ]
        for names, cells in table.rows:
            texts = [*names, *(one.text for one in cells)]
            lines.append(" & ".join(text.translate(_TEX) for text in texts) + " \\\\")
        parts.append("\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]))
    return "\n\n".join(parts) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """A line for each figure: table, row, column, value, low, high."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "low", "high"])
    for table in tables:
        for names, cells in table.rows:
            for head, one in zip(table.heads, cells, strict=True):
                if one.value is not None:
                    row = " / ".join(names)
                    writer.writerow([table.title, row, head, one.value, one.low, one.high])
    return file.getvalue()
