"""What a table leaves below its output: the table in several forms, and its page with strips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from bs_ray import __version__
from bs_ray.bench.table.figures import Measured
from bs_ray.config import TableJob
from bs_ray.evaluate import strips
from bs_ray.evaluate.report import image_uri
from bs_ray.evaluate.tables import Cell, Table, cell, to_csv, to_latex, to_markdown
from bs_ray.storage import Store

_MATCHED = {
    "effect": ("effect", "{:+#.3g}"),
    "drift": ("drift of others", "{:.4f}"),
    "identity": ("identity", "{:.4f}"),
    "lpips64": ("LPIPS at 64 px", "{:.4f}"),
    "lpips": ("LPIPS", "{:.4f}"),
    "clip_change": ("CLIP change", "{:+.2f}"),
    "monotone_share": ("monotone", "{:.1%}"),
    "strength": ("LoRA scale", "{:.2f}"),
    "n": ("N", "{:d}"),
}
_UNMATCHED = {
    "clip": ("CLIP", "{:.2f}"),
    "lpips64": ("LPIPS at 64 px", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "clip_change": ("CLIP change", "{:+.2f}"),
    "effect": ("effect", "{:+#.3g}"),
    "identity": ("identity", "{:.3f}"),
}
_PAPER = {"clip": ("the paper's CLIP", "{:.2f}"), "lpips": ("the paper's LPIPS", "{:.3f}")}
_ON_TERMINAL = {
    "effect": "effect",
    "drift of others": "drift",
    "identity": "identity",
    "LPIPS at 64 px": "LPIPS 64",
    "CLIP": "CLIP",
    "the paper's CLIP": "paper: CLIP",
    "the paper's LPIPS": "LPIPS",
    "N": "N",
}
"""Heading -> what a terminal of 80 characters calls it."""
_STRIP_FACES = 2


def write_outputs(
    job: TableJob, figures: Mapping[str, Any], measured: Mapping[str, Measured]
) -> None:
    """table.json, all figures; table.md, table.tex and table.csv; table.html, which needs no other
    file. Each slider's own evaluation lies beside them, in a folder of its name."""
    output, tables = Store(job.output), tables_of(job, figures)
    written = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    output.write("table.json", written.encode())
    output.write("table.md", (to_markdown(tables) + "\n" + _notes(figures)).encode())
    output.write("table.tex", to_latex(tables).encode())
    output.write("table.csv", to_csv(tables).encode())
    output.write("table.html", _page(job, figures, measured, tables).encode())


def tables_of(job: TableJob, figures: Mapping[str, Any]) -> list[Table]:
    """At equal effect, and by the paper's protocol with the paper's own figures in columns of their
    own."""
    title = job.title or job.name
    rows: list[tuple[list[str], list[Cell]]] = []
    unmatched: list[tuple[list[str], list[Cell]]] = []
    for label, row in figures["rows"].items():
        head = f"{label} (in place of {row['in_paper']})" if row["in_paper"] else label
        for method in job.methods:
            at_equal = row[method] or {}
            its, paper = at_equal.get("unmatched", {}), row["paper"].get(method, {})
            rows.append(([head, method], [cell(at_equal, k, f) for k, (_, f) in _MATCHED.items()]))
            cells = [cell(paper, key, form) for key, (_, form) in _PAPER.items()]
            cells += [_with_sd(its, key, form) for key, (_, form) in _UNMATCHED.items()]
            unmatched.append(([head, method], cells))
    names = ("row", "method")
    heads = [head for head, _ in _MATCHED.values()]
    found = [Table(f"{title}: at the same effect in each row", names, heads, rows)]
    heads = [head for head, _ in (*_PAPER.values(), *_UNMATCHED.values())]
    protocol = f"{title}: by the paper's protocol, at LoRA scale {job.strength:g}"
    return [*found, Table(protocol, names, heads, unmatched)]


def terminal_tables(
    job: TableJob, figures: Mapping[str, Any]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) without intervals and without what 80 characters have no room for."""
    found = []
    for table in tables_of(job, figures):
        shown = [n for n, head in enumerate(table.heads) if head in _ON_TERMINAL]
        heads = [*table.names, *(_ON_TERMINAL[table.heads[n]] for n in shown)]
        rows = [[*names, *(cells[n].text for n in shown)] for names, cells in table.rows]
        found.append((table.title, heads, rows))
    return found


def verdicts_of(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every row's verdicts, as evaluate says them."""
    return [
        {"row": label, **verdict}
        for label, row in figures["rows"].items()
        for verdict in row["verdicts"].values()
    ]


def _with_sd(its: Mapping[str, Any], key: str, form: str) -> Cell:
    made = cell(its, key, form)
    sd = its.get("sd", {}).get(key)
    return (
        made if sd is None else Cell(made.text, f"± {form.replace('+', '').format(sd)}", made.value)
    )


def _notes(figures: Mapping[str, Any]) -> str:
    lines = [*_judges(figures), *(f"{m} is left out: {why}" for m, why in _absent(figures).items())]
    lines += [one["sentence"] for one in verdicts_of(figures)]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _judges(figures: Mapping[str, Any]) -> list[str]:
    """Which judge stands behind LPIPS, identity and CLIP, split by split."""
    found = {}
    for row in figures["rows"].values():
        named = [f"{kind}: {name or 'none at hand'}" for kind, name in row["judges"].items()]
        found[row["split"]] = f"Judges on {row['split']}: {', '.join(named)}"
    return list(found.values())


def _absent(figures: Mapping[str, Any]) -> dict[str, str]:
    """Methods and judges that are not at hand, each with the reason."""
    judges = {name: why for row in figures["rows"].values() for name, why in row["absent"].items()}
    return figures["absent"] | {n: why for n, why in judges.items() if not n.startswith("own-")}


def _page(
    job: TableJob,
    figures: Mapping[str, Any],
    measured: Mapping[str, Measured],
    tables: list[Table],
) -> str:
    shown = []
    for label, row in figures["rows"].items():
        one = measured[row["slider"]]
        strip = strips.side_by_side(one.table, row["split"], one.arms, _STRIP_FACES)
        if strip:
            names = [arm.name for arm in one.arms]
            shown.append({"label": label, "arms": names, "image": image_uri(strip)})
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    return pages.get_template("bench/table/table.html.j2").render(
        title=job.title or job.name,
        job=job,
        version=__version__,
        tables=tables,
        verdicts=verdicts_of(figures),
        strips=shown,
        judges=_judges(figures),
        absent=_absent(figures),
        seconds=figures["training_seconds"],
    )
