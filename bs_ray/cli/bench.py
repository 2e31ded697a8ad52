"""`bs-ray bench`: a command for each of the published figures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bs_ray.cli.shared import JsonFile, console, report, write_json

WorldBase = Annotated[
    str, typer.Option(help="tiny, tiny-flow or tiny-photo, or the folder of such a base.")
]
WorldFaces = Annotated[
    str | None,
    typer.Option(help="With tiny-photo: LFW, deep-funneled, as an archive or a folder."),
]

app = typer.Typer(no_args_is_help=True, help="Measure what docs/results.md publishes.")


@app.command("bank", epilog="Example: bs-ray bench bank --json bank.json")
def bench_bank(
    base: Annotated[str, typer.Option(help="`tiny` or a diffusers folder.")] = "tiny",
    rows: Annotated[int, typer.Option(help="Rows per batch.", min=2)] = 32,
    repeats: Annotated[int, typer.Option(help="Timings of each.", min=1)] = 5,
    json_file: JsonFile = None,
) -> None:
    """A batch of mixed sliders against a uniform one, the base alone, and PEFT one by one."""
    from bs_ray.bench.bank import bank

    _show_bench(bank(base, rows, repeats, report), json_file)


@app.command("edit", epilog="Example: bs-ray bench edit --json edit.json")
def bench_edit(
    photos: Annotated[int, typer.Option(help="Photos of each run.", min=96)] = 480,
    repeats: Annotated[int, typer.Option(help="Runs in turn with the bare loop.", min=1)] = 3,
    large: Annotated[
        str, typer.Option(help="Comma list of how many tiny photos to compare memory over.")
    ] = "1000,10000",
    json_file: JsonFile = None,
) -> None:
    """The batch pipeline against the bare editor, a slow model and a plain loop; its memory."""
    from bs_ray.bench.edit import bench_edit as run

    sizes = [int(size) for size in large.split(",")]
    _show_bench(run(photos, repeats, sizes, report), json_file)


@app.command("daily", epilog="Example: bs-ray bench daily --json daily.json")
def bench_daily(
    photos: Annotated[int, typer.Option(help="Photos of the first day.", min=100)] = 1000,
    json_file: JsonFile = None,
) -> None:
    """A thousand photos, then 50 new, 10 changed and 5 gone: once undisturbed, once killed."""
    from bs_ray.bench.daily import bench_daily as run

    _show_bench(run(photos, report), json_file)


@app.command("serve", epilog="Example: bs-ray bench serve --json serve.json")
def bench_serve(
    loads: Annotated[
        str, typer.Option(help="Comma list of how many clients call at once.")
    ] = "1,4,16,32",
    seconds: Annotated[float, typer.Option(help="Seconds of each load.", min=1)] = 20,
    overload: Annotated[float, typer.Option(help="Seconds at twice saturation.", min=1)] = 120,
    json_file: JsonFile = None,
) -> None:
    """The endpoint under load, overload and faults, against a server under a lock."""
    from bs_ray.bench.serve import bench_serve as run

    counts = [int(count) for count in loads.split(",")]
    _show_bench(run(counts, seconds, overload, report), json_file)


@app.command("train", epilog="Example: bs-ray bench train --seeds 1 --json race.json")
def bench_train(
    attributes: Annotated[
        str, typer.Option(help="Comma list of sliders to race with; two where left out.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Seeds per slider.", min=1)] = 3,
    base: WorldBase = "tiny",
    faces: WorldFaces = None,
    count: Annotated[int, typer.Option(help="Held-out faces to look at.", min=2)] = 48,
    json_file: JsonFile = None,
) -> None:
    """Time to the same effect: live and cached teacher against Concept Sliders' procedure."""
    from bs_ray.bench.overhead import overhead
    from bs_ray.bench.train import train
    from bs_ray.bench.train_bench import TrainBench

    bench, save = TrainBench.load(base, faces), partial(write_json, json_file)
    figures = train(bench, _names(attributes), seeds, count, report, save)
    _show_bench(figures | {"overhead_share": overhead(report, bench)}, json_file)


@app.command("ablation", epilog="Example: bs-ray bench ablation --json ablation.json")
def bench_ablation(
    attributes: Annotated[str, typer.Option(help="Comma list: age, smile, chubby.")] = "age,smile",
    seeds: Annotated[int, typer.Option(help="Seeds per arm.", min=1)] = 3,
    arms: Annotated[str, typer.Option(help="Arms, separated by ;. All where left out.")] = "",
    base: WorldBase = "tiny",
    faces: WorldFaces = None,
    count: Annotated[int, typer.Option(help="Held-out faces to measure on.", min=2)] = 44,
    json_file: JsonFile = None,
) -> None:
    """The paper's Table II and more: which loss does what at the same effect.

    With --json the file is written after every slider, and the same command goes on from it.
    """
    from bs_ray.bench.ablation import ARMS, ablation
    from bs_ray.bench.train_bench import TrainBench
    from bs_ray.progress import Bars, Reported

    chosen = _names(arms, ";") or list(ARMS)
    if unknown := [name for name in chosen if name not in ARMS]:
        raise typer.BadParameter(f"got {unknown}; expected some of {'; '.join(ARMS)}")
    bench = TrainBench.load(base, faces)
    with Bars(console, "ablation") as bars:

        def after_run(done: int, total: int, line: str) -> None:
            report(line)
            bars.show({"sliders": Reported(done, total, {})})

        bars.show({"sliders": Reported(0, len(chosen), {})})
        figures = ablation(bench, _names(attributes), seeds, chosen, count, json_file, after_run)
    for attribute, found in figures["attributes"].items():
        _show_arms(attribute, found)
    write_json(json_file, figures)


def _show_arms(attribute: str, arms: dict[str, Any]) -> None:
    harms = [name for name in next(iter(arms.values()))["far"] if name != "effect"]
    for title, part in (("at the same effect", None), ("at the far end", "far")):
        table = Table(
            *("arm", *harms, "seeds", "effect", "seconds"),
            title=f"{attribute}: % against neither, {title}; kid: difference x 1000",
        )
        for arm, measures in arms.items():
            shown = measures[part] if part else measures
            cells = [_change(shown.get(name)) for name in harms]
            effect = f"{measures['far']['effect']['mean']:.3g}" if part else "equal"
            seconds = f"{measures['seconds']['mean']:.0f}"
            table.add_row(arm, *cells, str(measures["reached"]), effect, seconds)
        console.print(table)


def _change(found: dict[str, float] | None) -> str:
    return f"{found['mean']:+.1f} ± {found['sd']:.1f}" if found else "not reached"


def _names(listed: str, between: str = ",") -> list[str]:
    return [name.strip() for name in listed.split(between) if name.strip()]


@app.command("words", epilog="Example: bs-ray bench words --json words.json")
def bench_words(
    attributes: Annotated[
        str, typer.Option(help="Comma list of attributes; all that have a goal where left out.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Seeds of each.", min=1)] = 3,
    base: WorldBase = "tiny",
    faces: WorldFaces = None,
    json_file: JsonFile = None,
) -> None:
    """Words against trained sliders at the same effect, and from when on training pays."""
    from bs_ray.bench.train_bench import TrainBench
    from bs_ray.bench.words import MEASURES, words

    bench, save = TrainBench.load(base, faces), partial(write_json, json_file)
    figures = words(bench, _names(attributes), seeds, report, save)
    for attribute, found in figures["attributes"].items():
        for arm in ("trained", "words"):
            shown = (
                f"{m} {found[arm][m]['mean']:.4g} ± {found[arm][m]['sd']:.2g}" for m in MEASURES
            )
            report(f"{attribute}, {arm}: {', '.join(shown)}")
        training = found["trained"]
        report(
            f"{attribute}: training took {training['training_seconds']['mean']:.1f} s and "
            f"{training['training_evaluations']['mean']:.0f} evaluations; it pays after "
            f"{_figure(found['pays_after_photos'])} photos by time, after "
            f"{_figure(found['pays_after_photos_by_evaluations'])} by evaluations"
        )
    write_json(json_file, figures)


@app.command("workers", epilog="Example: bs-ray bench workers --json workers.json")
def bench_workers(
    repeats: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 3,
    json_file: JsonFile = None,
) -> None:
    """Two Ray Train workers against one, and how much of a step is not the networks."""
    from bs_ray.bench.workers import workers

    _show_bench(workers(repeats, report), json_file)


@app.command("together", epilog="Example: bs-ray bench together --json together.json")
def bench_together(json_file: JsonFile = None) -> None:
    """Four sliders trained in one run over one cache, against four runs."""
    from bs_ray.bench.workers import together

    _show_bench(together(report), json_file)


@app.command("full-size", epilog="Example: bs-ray bench full-size --json full-size.json")
def bench_full_size(
    base: Annotated[
        str, typer.Option(help="A published architecture, or a diffusers folder for its sizes.")
    ] = "sdxl-base-1.0",
    px: Annotated[int, typer.Option(help="Side of the pictures.", min=64)] = 256,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    zero_stage: Annotated[
        int | None, typer.Option(help="DeepSpeed at this ZeRO stage; plain torch otherwise.", max=3)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Full-size training steps with random weights: seconds a sample, memory against plan."""
    from bs_ray.bench.fullsize import fullsize

    _show_bench(fullsize(report, base, px, device, zero_stage), json_file)


@app.command("judges", epilog="Example: bs-ray bench judges --faces lfw.tgz --faces utkface.tar")
def bench_judges(
    faces: Annotated[
        list[str], typer.Option(help="An archive of LFW or of UTKFace; may be given again.")
    ],
    pairs: Annotated[
        str | None, typer.Option(help="LFW's pairs.txt; beside the archive by default.")
    ] = None,
    smiles: Annotated[
        str | None, typer.Option(help="CSV of file,smile (0 or 1) for photos of LFW.")
    ] = None,
    count: Annotated[
        int,
        typer.Option(help="Pairs of each kind; twice as many photos with an age or smile.", min=2),
    ] = 300,
    json_file: JsonFile = None,
) -> None:
    """Public judges on photos whose truth is known: identity, age, gender and smiles."""
    from bs_ray.bench.judges import judges

    figures = judges(faces, pairs, smiles, count, report)
    for part in ("pairs", "smiles", "ages"):
        if part in figures:
            _show_bench({f"{part}: {name}": value for name, value in figures[part].items()}, None)
    write_json(json_file, figures)


@app.command("gpu", epilog="Example: bs-ray bench gpu --json gpu.json")
def bench_gpu(
    base: Annotated[
        str, typer.Option(help="A published architecture, or a diffusers folder for its sizes.")
    ] = "sdxl-base-1.0",
    px: Annotated[int, typer.Option(help="Side of the edited photos.", min=64)] = 1024,
    device: Annotated[str, typer.Option(help="`cuda` or `cpu`.")] = "cuda",
    seconds: Annotated[
        float, typer.Option(help="Leave out what does not fit into this time.")
    ] = 420,
    rows: Annotated[
        str, typer.Option(help="Comma list of the rows to measure; all by default.")
    ] = "",
    json_file: JsonFile = None,
) -> None:
    """A full-size base of random weights on one GPU: forward, train, resume, edit, serve."""
    from bs_ray.bench.gpu.run import gpu, show

    only = [name.strip() for name in rows.split(",") if name.strip()]
    show(gpu(report, base, px, device, seconds, only, json_file), console)


def _show_bench(figures: dict, json_file: Path | None) -> None:
    for key, value in figures.items():
        console.print(f"{key}: [bold]{_figure(value)}[/]", soft_wrap=True)
    write_json(json_file, figures)


def _figure(value: Any) -> str:
    """A figure to three or four digits, whatever it is nested in."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " .. ".join(map(_figure, value))
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
