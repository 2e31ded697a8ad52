"""The command line. A verb's room is imported only when the verb is called.

Exit codes: 0 done, 1 failed, 2 bad input (the message says got, expected and what to do).
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bs_ray import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, apply, serve and measure continuous attribute sliders (LoRA), on Ray.",
    epilog="Start with [bold]bs-ray demo[/]; then read jobs/tiny/*.yaml.",
)
tiny_app = typer.Typer(
    no_args_is_help=True, help="The embedded base: a small SDXL of 64-pixel faces."
)
ingest_app = typer.Typer(no_args_is_help=True, help="Bring photos into storage.")
sliders_app = typer.Typer(no_args_is_help=True, help="Published sliders.")
keys_app = typer.Typer(no_args_is_help=True, help="Who may ask a server for edits.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure ratios, side by side in one run.")
for name, group in (
    ("tiny", tiny_app), ("ingest", ingest_app), ("sliders", sliders_app), ("keys", keys_app),
    ("bench", bench_app),
):  # fmt: skip
    app.add_typer(group, name=name)

console = Console()
_INTERRUPTED = 130  # what Typer makes of Ctrl-C, after everything within has cleaned up

JobFile = Annotated[Path, typer.Argument(help="A job file, see jobs/.", metavar="JOB.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, e.g. steps=400 losses.adversarial=0.", metavar="[KEY=VALUE]..."
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.")
]


def main() -> None:
    """Run the command line; every error of the user's input becomes one message and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        _fail(error, code=2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            console.print("\n[yellow]Stopped.[/] Run the same command again to go on.")
        raise
    except Exception as error:
        if isinstance(error, RuntimeError | OSError):
            _fail(error, code=1)
        raise


def _fail(error: BaseException, code: int) -> None:
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
    )
    sys.exit(code)


def _load(path: Path, overrides: list[str] | None, kind: str) -> Any:
    from bs_ray import concept_sliders
    from bs_ray.config import load

    if kind == "train" and concept_sliders.is_foreign(path):
        job, notes = concept_sliders.read(path, overrides)
        console.print(f"{path} is a file of Concept Sliders':", soft_wrap=True, markup=False)
        for note in notes:
            console.print(f"  {note}", soft_wrap=True, markup=False)
        return job
    return load(path, overrides, kind)


def _write_json(path: Path | None, figures: dict) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"bs-ray {__version__}")
        raise typer.Exit


@app.command(epilog="Example: bs-ray demo --quick --out /tmp/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and everything else.")] = Path(
        "demo-out"
    ),
    quick: Annotated[bool, typer.Option(help="Under 3 minutes: one slider, fewer photos.")] = False,
) -> None:
    """Everything once, offline: ingest, train, edit, serve, evaluate; a report to look at."""
    from bs_ray.demo import demo as run

    run(out, quick=quick, console=console)


@app.command(epilog="Example: bs-ray train jobs/tiny/train-smile.yaml steps=300")
def train(
    job: JobFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Run nothing; say what the job will take.")
    ] = False,
    gpu_memory_gb: Annotated[
        float | None,
        typer.Option(help="With --plan: refuse what needs more GiB a worker.", min=0.01),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Train a slider and publish it. The same command resumes a stopped run."""
    from dataclasses import asdict

    loaded = _load(job, overrides, "train")
    if plan:
        from bs_ray.train.plan import plan as make_plan
        from bs_ray.train.plan import show

        made = make_plan(loaded, gpu_memory_gb)
        show(made, console)
        _write_json(json_file, asdict(made))
        return
    if gpu_memory_gb is not None:
        raise ValueError("got --gpu-memory-gb without --plan; expected both: a run reads no limit")
    from bs_ray.train.run import train as run

    result = run(loaded, console=console)
    _write_json(json_file, asdict(result))


@app.command(epilog="Example: bs-ray edit jobs/tiny/edit-wild.yaml input=s3://photos/2024 --plan")
def edit(
    job: JobFile,
    overrides: Overrides = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Say what there is to do and how long it takes; write nothing."
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first so many photos (the job's `limit`).")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Take so many photos at random (its `sample`).")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics while it runs.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Edit a bucket or folder of photos. The same command resumes a stopped job."""
    from dataclasses import asdict

    taken = {"limit": limit, "sample": sample}
    given = [f"{name}={count}" for name, count in taken.items() if count is not None]
    loaded = _load(job, [*(overrides or []), *given], "edit")
    from bs_ray import batch
    from bs_ray.data.lease import JobTakenError

    if plan:
        found = batch.estimate(loaded, console)
        console.print(batch.estimate_table(found))
        _write_json(json_file, asdict(found))
        return
    try:
        done = batch.edit(loaded, console=console, metrics_port=metrics_port)
    except JobTakenError as taken_by:
        console.print(f"{loaded.name}: {taken_by}", soft_wrap=True)
        return
    _write_json(json_file, asdict(done))


@app.command(
    "edit-one",
    epilog="Example: bs-ray edit-one photo.jpg --slider chubby=1 --slider smile=1.5 --sweep",
)
def edit_one(
    photo: Annotated[Path, typer.Argument(help="A photo: JPEG, PNG, WebP, BMP or TIFF.")],
    slider: Annotated[
        list[str],
        typer.Option(help="NAME=STRENGTH; name, name@version or a file. Repeat to combine."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; beside the photo where left out.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option(help="Write a strip instead: each slider from - to + its strength.")
    ] = False,
    compose: Annotated[
        bool, typer.Option(help="Write a strip instead: one slider more in every picture.")
    ] = False,
    registry: Annotated[str, typer.Option(help="Where sliders are looked up.")] = "sliders",
    base: Annotated[str, typer.Option(help="`tiny`, or a diffusers folder.")] = "tiny",
    preset: Annotated[str, typer.Option(help="fast, balanced or high.")] = "fast",
    method: Annotated[str, typer.Option(help="How to edit, as editor.method.")] = "displacement",
    seed: Annotated[int, typer.Option(help="Fixes the noise, with the photo's content.")] = 0,
) -> None:
    """Edit one photo here, without a cluster: the photo again, or a strip of it as PNG."""
    from bs_ray.config import editor_settings
    from bs_ray.editone import OnePhoto, strengths_of

    if sweep and compose:
        raise ValueError("got --sweep and --compose; expected one of them")
    settings = editor_settings({"preset": preset, "method": method})
    one = OnePhoto(photo, strengths_of(slider), settings, base=base, registry=registry, seed=seed)
    if sweep or compose:
        kind = "sweep" if sweep else "compose"
        out = out or photo.with_name(f"{photo.stem}-{kind}.png")
        (one.sweep() if sweep else one.compose()).save(out)
    else:
        out = out or photo.with_name(f"{photo.stem}-edited{photo.suffix}")
        data, notes = one.edit()
        out.write_bytes(data)
        for note in notes:
            _say(note)
    _say(f"wrote {out}")


@app.command(epilog="Example: bs-ray serve jobs/tiny/serve.yaml port=9000")
def serve(job: JobFile, overrides: Overrides = None) -> None:
    """Serve sliders over HTTP until Ctrl-C."""
    loaded = _load(job, overrides, "serve")
    from bs_ray.serve.app import serve_job

    serve_job(loaded, console=console)


@app.command(
    epilog="Example: bs-ray evaluate jobs/tiny/quick.yaml settings.text=16 --json figures.json"
)
def evaluate(job: JobFile, overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Measure sliders, or (a job with `methods`) edit methods at equal effect; report.html."""
    loaded = _load(job, overrides, "evaluate")
    if loaded.methods:
        from bs_ray.evaluate.methods import compare, methods_table

        figures = compare(loaded, console=console)
        console.print(methods_table(figures))
    else:
        from bs_ray.evaluate.run import evaluate as run

        figures = run(loaded, console=console)
        _print_figures(figures)
    console.print(f"Report: [bold]{Path(loaded.output) / 'report.html'}[/]")
    _write_json(json_file, figures)


def _print_figures(figures: dict) -> None:
    table = Table("slider", "setting", "N", "effect", "drift", "monotone", "identity", "zero exact")
    for slider, settings in figures["sliders"].items():
        for setting, found in settings.items():
            table.add_row(
                slider,
                setting,
                str(found["faces"]),
                f"{found['effect']:+.3f}",
                f"{found['drift_other']:.3f}",
                f"{found['monotone_share']:.1%}",
                f"{found['identity']:.3f}",
                "yes" if found["zero_exact"] else "no",
            )
    console.print(table)


@app.command(
    epilog="Example: bs-ray submit jobs/tiny/train-smile.yaml --address http://127.0.0.1:8265"
)
def submit(
    job: JobFile,
    address: Annotated[str, typer.Option(help="The Ray head's dashboard address.")],
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
) -> None:
    """Run a job file on a running Ray cluster through its Jobs API."""
    from bs_ray.submit import submit as run

    run(job, address, follow, console=console)


@app.command()
def doctor() -> None:
    """Check this machine: versions, memory, object store, GPU, the shipped base."""
    from bs_ray.doctor import doctor as run

    if not run(console):
        raise typer.Exit(1)


@tiny_app.command(
    "build", epilog="Example: bs-ray tiny build --out my-base --stages reader,text,vae,unet"
)
def tiny_build(
    out: Annotated[Path, typer.Option(help="Folder of the finished base.")] = Path("tiny-base"),
    work: Annotated[
        Path, typer.Option(help="Folder of pictures, checkpoints and sample sheets.")
    ] = Path("tiny-work"),
    stages: Annotated[
        str | None, typer.Option(help="Comma list of stages; all by default.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers (gradients are averaged).", min=1)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per worker; all cores by default.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of the recipe's steps, for a quick try.", min=0.001, max=1)
    ] = 1.0,
) -> None:
    """Train the tiny base from nothing (about an hour on 2 cores). The same command resumes."""
    from bs_ray.tiny.build import build

    build(out, work, stages=stages, workers=workers, threads=threads, share=share, console=console)


@ingest_app.command("lfw", epilog="Example: bs-ray ingest lfw lfw.tgz s3://photos/lfw")
def ingest_lfw(
    source: Annotated[str, typer.Argument(help="lfw.tgz, or the extracted folder.")],
    destination: Annotated[str, typer.Argument(help="Prefix for the shards, local or s3://.")],
    format: Annotated[
        str, typer.Option(help="parquet, or webdataset: tars of a .jpg and a .json per photo.")
    ] = "parquet",
    shard_images: Annotated[int, typer.Option(help="Photos in a shard.", min=1)] = 1000,
) -> None:
    """Pack Labeled Faces in the Wild into shards for training; run again to go on."""
    from bs_ray.data.lfw import ingest_lfw as run

    console.print(run(source, destination, shard_images, format))


@ingest_app.command("tiny-world", epilog="Example: bs-ray ingest tiny-world data --photos 500")
def ingest_tiny_world(
    destination: Annotated[str, typer.Argument(help="Prefix for wild/ and lfw/, local or s3://.")],
    photos: Annotated[int, typer.Option(help="In-the-wild photos to draw.", min=1)] = 500,
    people: Annotated[
        int, typer.Option(help="People of the LFW-layout training set.", min=1)
    ] = 200,
    broken: Annotated[int, typer.Option(help="Broken files among the photos.", min=0)] = 10,
    seed: int = 0,
) -> None:
    """Draw photos of the tiny world to try everything with, some of them broken."""
    from bs_ray.tiny.photos import ingest_tiny_world as run

    console.print(run(destination, photos=photos, people=people, broken=broken, seed=seed))


@sliders_app.command("list")
def sliders_list(
    registry: Annotated[str, typer.Argument(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """The published sliders and their versions."""
    from bs_ray.sliders.registry import Registry

    table = Table("slider", "versions", "base", "prompts")
    catalogue = Registry(registry)
    for slider, versions in catalogue.list().items():
        card = catalogue.resolve(slider).card
        moves = (
            f"{card.prompts.negative} → {card.prompts.positive}" if card.prompts else card.target
        )
        table.add_row(slider, ", ".join(map(str, versions)), card.base, moves)
    console.print(table)


@sliders_app.command("show")
def sliders_show(
    slider: Annotated[str, typer.Argument(help="name, name@version or a .safetensors file.")],
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """A slider's card."""
    from bs_ray.sliders.registry import Registry

    console.print_json(Registry(registry).resolve(slider).card.model_dump_json())


@sliders_app.command("export", epilog="Example: bs-ray sliders export smile@1 --to kohya --out .")
def sliders_export(
    slider: Annotated[str, typer.Argument(help="name, name@version or a .safetensors file.")],
    to: Annotated[
        str, typer.Option(help="diffusers, peft (a folder), or kohya (also for ComfyUI, A1111).")
    ] = "kohya",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Write a slider as another tool's LoRA file; its scale 1.0 is our strength 1.0."""
    from bs_ray.sliders.formats import FORMATS, export
    from bs_ray.sliders.registry import Registry

    if to not in FORMATS:
        raise ValueError(f"--to: got {to!r}; expected one of {', '.join(FORMATS)}")
    files = export(Registry(registry).resolve(slider), to)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
        console.print(f"wrote [bold]{out / name}[/]", soft_wrap=True)


@sliders_app.command(
    "import", epilog="Example: bs-ray sliders import age.pt --name age --base tiny"
)
def sliders_import(
    file: Annotated[Path, typer.Argument(help=".safetensors, Concept Sliders' .pt, PEFT folder.")],
    name: Annotated[str, typer.Option(help="Name to publish it under.")],
    base: Annotated[str, typer.Option(help="The base it was trained on, as in a job file.")],
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Publish another tool's LoRA as a slider, checked against its base. No pickle is run."""
    from bs_ray.models import load_base
    from bs_ray.sliders.formats import import_slider
    from bs_ray.sliders.registry import Registry

    model = load_base(base, device="meta")  # its layers' shapes are enough
    slider = Registry(registry).publish(import_slider(file, name, base, model))
    console.print(f"published [bold]{slider.reference}[/] in {registry}", soft_wrap=True)


@keys_app.command("add", epilog="Example: bs-ray keys add keys.yaml team-a --per-minute 600")
def keys_add(
    file: Annotated[str, typer.Argument(help="Keys file, local or s3://; made if need be.")],
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs and metrics.")],
    sliders: Annotated[
        str, typer.Option(help="Comma list of sliders that it may use; globs are fine.")
    ] = "*",
    per_minute: Annotated[
        float | None, typer.Option(help="Most requests a minute; no limit if left out.", min=0.01)
    ] = None,
    expires: Annotated[
        datetime | None, typer.Option(help="First day it is no longer good.", formats=["%Y-%m-%d"])
    ] = None,
) -> None:
    """Make an API key: shown once here, kept as its hash there. Servers learn of it within 30 s."""
    from bs_ray.serve.keys import add_key

    given = {
        "sliders": sliders.split(","), "requests_per_minute": per_minute,
        "expires": expires and expires.date(),
    }  # fmt: skip
    secret = add_key(file, name, **{k: v for k, v in given.items() if v is not None})
    console.print(f"Added {name} to {file}. Its key, which is not shown again:", highlight=False)
    print(secret)


@bench_app.command("bank", epilog="Example: bs-ray bench bank --json bank.json")
def bench_bank(
    base: Annotated[str, typer.Option(help="`tiny` or a diffusers folder.")] = "tiny",
    rows: Annotated[int, typer.Option(help="Rows per batch.", min=2)] = 32,
    repeats: Annotated[int, typer.Option(help="Timings of each.", min=1)] = 5,
    json_file: JsonFile = None,
) -> None:
    """A batch of mixed sliders against a uniform one, the base alone, and PEFT one by one."""
    from bs_ray.bench.bank import bank

    _show_bench(bank(base, rows, repeats, _say), json_file)


@bench_app.command("edit", epilog="Example: bs-ray bench edit --json edit.json")
def bench_edit(
    photos: Annotated[int, typer.Option(help="Photos of each run.", min=96)] = 480,
    repeats: Annotated[int, typer.Option(help="Runs in turn with the bare loop.", min=1)] = 3,
    large: Annotated[
        str, typer.Option(help="Comma list of how many tiny photos to compare memory over.")
    ] = "1000,10000",
    json_file: JsonFile = None,
) -> None:
    """The batch pipeline over the bare editor, over a slow model and a plain loop; its growth."""
    from bs_ray.bench.edit import bench_edit as run

    sizes = [int(size) for size in large.split(",")]
    _show_bench(run(photos, repeats, sizes, _say), json_file)


@bench_app.command("serve", epilog="Example: bs-ray bench serve --json serve.json")
def bench_serve(
    loads: Annotated[
        str, typer.Option(help="Comma list of how many clients ask at once.")
    ] = "1,4,16,32",
    seconds: Annotated[float, typer.Option(help="Seconds of each load.", min=1)] = 20,
    overload: Annotated[float, typer.Option(help="Seconds at twice saturation.", min=1)] = 120,
    json_file: JsonFile = None,
) -> None:
    """The endpoint under load: one slider, 32 mixes, a server under a lock; overload and faults."""
    from bs_ray.bench.serve import bench_serve as run

    counts = [int(count) for count in loads.split(",")]
    _show_bench(run(counts, seconds, overload, _say), json_file)


@bench_app.command("train", epilog="Example: bs-ray bench train --seeds 1 --json race.json")
def bench_train(
    attributes: Annotated[
        str, typer.Option(help="Comma list of sliders of the tiny world to race with.")
    ] = "chubby,age",
    seeds: Annotated[int, typer.Option(help="Seeds per slider.", min=1)] = 3,
    json_file: JsonFile = None,
) -> None:
    """Time to the same effect: live and cached teacher against Concept Sliders' procedure."""
    from bs_ray.bench.overhead import overhead
    from bs_ray.bench.train import train

    figures = train(attributes.split(","), seeds, _say)
    _show_bench(figures | {"overhead_share": overhead(_say)}, json_file)


@bench_app.command("ablation", epilog="Example: bs-ray bench ablation --json ablation.json")
def bench_ablation(
    seeds: Annotated[int, typer.Option(help="Seeds per arm.", min=1)] = 3,
    json_file: JsonFile = None,
) -> None:
    """The paper's Table II on the tiny base: which loss does what, mean and spread over seeds."""
    from bs_ray.bench.ablation import ablation

    figures = ablation(seeds, _say)
    table = Table("arm", *(next(iter(figures["arms"].values()))))
    for arm, measures in figures["arms"].items():
        table.add_row(arm, *(f"{m['mean']:.4f} ± {m['sd']:.4f}" for m in measures.values()))
    console.print(table)
    _write_json(json_file, figures)


@bench_app.command("workers", epilog="Example: bs-ray bench workers --json workers.json")
def bench_workers(
    repeats: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 3,
    json_file: JsonFile = None,
) -> None:
    """Two Ray Train workers against one, and how much of a step is not the networks."""
    from bs_ray.bench.workers import workers

    _show_bench(workers(repeats, _say), json_file)


@bench_app.command("together", epilog="Example: bs-ray bench together --json together.json")
def bench_together(json_file: JsonFile = None) -> None:
    """Four sliders trained in one run over one cache, against four runs."""
    from bs_ray.bench.workers import together

    _show_bench(together(_say), json_file)


@bench_app.command("full-size", epilog="Example: bs-ray bench full-size --json full-size.json")
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
    """Full-size steps of every mode with random weights: seconds a sample, memory against plan."""
    from bs_ray.bench.fullsize import fullsize

    _show_bench(fullsize(_say, base, px, device, zero_stage), json_file)


@bench_app.command("gpu", epilog="Example: bs-ray bench gpu --json gpu.json")
def bench_gpu(
    base: Annotated[
        str, typer.Option(help="A published architecture, or a diffusers folder for its sizes.")
    ] = "sdxl-base-1.0",
    px: Annotated[int, typer.Option(help="Side of the edited photos.", min=64)] = 1024,
    device: Annotated[str, typer.Option(help="`cuda` or `cpu`.")] = "cuda",
    seconds: Annotated[float, typer.Option(help="Measure what fits into so many.")] = 420,
    rows: Annotated[str, typer.Option(help="Only these, by name, comma between them.")] = "",
    json_file: JsonFile = None,
) -> None:
    """Full-size base of random weights on one GPU: forward, train, resume, edit, serve, compile."""
    from bs_ray.bench.gpu import gpu, show

    only = [name.strip() for name in rows.split(",") if name.strip()]
    show(gpu(_say, base, px, device, seconds, only, json_file), console)


def _say(line: str) -> None:
    """A line of progress, as it is: long ones are not broken, brackets are no markup."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show_bench(figures: dict, json_file: Path | None) -> None:
    for key, value in figures.items():
        console.print(f"{key}: [bold]{_figure(value)}[/]", soft_wrap=True)
    _write_json(json_file, figures)


def _figure(value: Any) -> str:
    """A figure to three or four digits, whatever it is nested in."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " .. ".join(map(_figure, value))
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    main()
