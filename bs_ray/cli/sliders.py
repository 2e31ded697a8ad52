"""`bs-ray sliders`: published sliders, and sliders of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bs_ray.cli.shared import console, report

app = typer.Typer(no_args_is_help=True, help="Published sliders.")


@app.command("list")
def sliders_list(
    registry: Annotated[str, typer.Argument(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """List the published sliders and their versions."""
    from bs_ray.sliders.registry import Registry

    table = Table("slider", "versions", "base", "prompts")
    catalogue = Registry(registry)
    found = catalogue.list()
    if not found:
        report(f"no sliders in {registry}; `bs-ray train JOB.yaml` publishes some")
        return
    for slider, versions in found.items():
        card = catalogue.resolve(slider).card
        moves = (
            f"{card.prompts.negative} → {card.prompts.positive}" if card.prompts else card.target
        )
        table.add_row(slider, ", ".join(map(str, versions)), card.base, moves)
    console.print(table)


@app.command("show")
def sliders_show(
    slider: Annotated[str, typer.Argument(help="name, name@version or a .safetensors file.")],
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Print a slider's card, without the losses of each step."""
    from bs_ray.sliders.registry import Registry

    card = json.loads(Registry(registry).resolve(slider).card.to_json())
    card.get("training", {}).pop("history", None)  # hundreds of lines that hide all others
    console.print_json(data=card)


@app.command("export", epilog="Example: bs-ray sliders export smile@1 --to kohya --out .")
def sliders_export(
    slider: Annotated[str, typer.Argument(help="name, name@version or a .safetensors file.")],
    to: Annotated[
        str, typer.Option(help="diffusers, peft (a folder), or kohya (also for ComfyUI, A1111).")
    ] = "kohya",
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    dtype: Annotated[str, typer.Option(help="fp16, as such files are shared, or fp32.")] = "fp16",
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Write a slider as another tool's LoRA file. Its scale there is our lora_scale."""
    from bs_ray.sliders.exporting import DTYPES, FORMATS, export
    from bs_ray.sliders.registry import Registry

    for option, got, known in (("--to", to, FORMATS), ("--dtype", dtype, tuple(DTYPES))):
        if got not in known:
            raise ValueError(f"{option}: got {got!r}; expected one of {', '.join(known)}")
    files = export(Registry(registry).resolve(slider), to, dtype)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
        console.print(f"wrote [bold]{out / name}[/]", soft_wrap=True)


@app.command("import", epilog="Example: bs-ray sliders import age.pt --name age --base tiny")
def sliders_import(
    file: Annotated[Path, typer.Argument(help=".safetensors, Concept Sliders' .pt, PEFT folder.")],
    name: Annotated[str, typer.Option(help="Name to publish it under.")],
    base: Annotated[str, typer.Option(help="The base it was trained on, as in a job file.")],
    drop_text_encoder: Annotated[
        bool, typer.Option("--drop-text-encoder", help="Leave out what adapts text encoders.")
    ] = False,
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Publish another tool's LoRA as a slider, checked against its base. No pickle is run."""
    from bs_ray.models import load_base
    from bs_ray.sliders.importing import import_slider
    from bs_ray.sliders.registry import Registry

    model = load_base(base, device="meta")  # its layers' shapes are enough
    imported = import_slider(file, name, base, model, drop_text_encoder)
    slider = Registry(registry).publish(imported)
    if left_out := slider.card.training.get("left_out"):
        report(f"warning: left out {left_out}; this slider moves the denoiser alone")
    console.print(f"published [bold]{slider.reference}[/] in {registry}", soft_wrap=True)


@app.command("calibrate", epilog="Example: bs-ray sliders calibrate age@1 --base ./juggernaut-xl")
def sliders_calibrate(
    slider: Annotated[str, typer.Argument(help="name, name@version or a .safetensors file.")],
    base: Annotated[str, typer.Option(help="The base to measure it on, as in a job file.")],
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Measure a slider on a base that it was not trained on, and store that beside it.

    Strengths on that base then count the effect that they have there.
    """
    from bs_ray.judges.load import find_judges
    from bs_ray.models import base_folder, identify_base, load_base
    from bs_ray.sliders.registry import Registry
    from bs_ray.train.watching.elsewhere import calibrated_on

    catalogue, here = Registry(registry), identify_base(base)
    found = catalogue.resolve(slider).on(here)
    if here.goes_by(found.card.base_id) and found.card.calibration:
        raise ValueError(
            f"slider {found.reference}: got {base}, which it was trained and measured on; expected "
            "another base"
        )
    model = load_base(base, device=device)
    measured = calibrated_on(found, model, find_judges(base_folder(base)))
    place = catalogue.keep_calibration(slider, here, base, measured)
    low, high = measured.units
    console.print(f"usable range on {base}: {low:.2g} to {high:.2g}", soft_wrap=True)
    console.print(f"wrote [bold]{place}[/]", soft_wrap=True)


@app.command(
    "words",
    epilog='Example: bs-ray sliders words smiling "person, smiling" "person, frowning" --base tiny',
)
def sliders_words(
    name: Annotated[str, typer.Argument(help="Name to publish it under.")],
    positive: Annotated[str, typer.Argument(help="The prompt that strength 1 moves towards.")],
    negative: Annotated[str, typer.Argument(help="The prompt that strength -1 moves towards.")],
    base: Annotated[str, typer.Option(help="The base, as in a job file.")],
    target: Annotated[
        str | None,
        typer.Option(help="What it acts on; what both prompts have in common by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    registry: Annotated[str, typer.Option(help="Registry prefix, local or s3://.")] = "sliders",
) -> None:
    """Publish words as a slider without training, measured on its base."""
    from bs_ray.config import check_name, words_at_strength
    from bs_ray.editing.measure_words import measured
    from bs_ray.judges.load import find_judges
    from bs_ray.models import base_folder, load_base
    from bs_ray.sliders.registry import Registry
    from bs_ray.sliders.slider import Slider

    said = {"positive": positive, "negative": negative, "target": target, "strength": 1}
    model = load_base(base, device=device)
    words = Slider.of_words(words_at_strength(said), base, model.base_id, check_name(name))
    judged = measured(words, model, find_judges(base_folder(base)))
    slider = Registry(registry).publish(judged)
    console.print(f"published [bold]{slider.reference}[/] in {registry}", soft_wrap=True)
    found = slider.card.calibration
    if found:
        low, high = found.units
        console.print(f"usable range: {low:.2g} to {high:.2g}", soft_wrap=True)
    else:
        console.print(f"no judge of pictures beside {base}: its usable range was not measured")
