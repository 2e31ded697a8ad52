"""`bs-ray edit-one`."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args

import typer
from typer.core import TyperCommand

from bs_ray.cli.shared import report

if TYPE_CHECKING:
    from bs_ray.config import WordsAtStrength
    from bs_ray.editing.single_photo import OnePhoto

app = typer.Typer()

T = TypeVar("T")


class _WordsInPairs(TyperCommand):
    """Typer knows no option that takes two values and may be repeated: here each pair of --words
    becomes one value, a JSON list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined, left = [], iter(args)
        for arg in left:
            joined.append(arg)
            if arg == "--words":
                joined.append(json.dumps(list(islice(left, 2))))
        return super().parse_args(ctx, joined)


@app.command(
    "edit-one",
    cls=_WordsInPairs,
    epilog="Example: bs-ray edit-one photo.jpg --slider chubby=1 --slider smile=1.5 --sweep",
)
def edit_one(
    photo: Annotated[Path, typer.Argument(help="A photo: JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC.")],
    slider: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=STRENGTH, where NAME is name, name@version or a file. Repeat to combine."
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(
            help="A slider without training: the prompts that it moves towards and away from, such "
            'as "person, smiling" "person, frowning". Repeat to combine.',
            metavar="POSITIVE NEGATIVE",
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Of --words; 1 by default. Once for all of them, or once for each."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What --words act on; what both prompts have in common by default. Once for all "
            "of them, or once for each."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write; PHOTO-edited, -sweep or -compose in the current folder where "
            "left out."
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(help="Write a strip instead: each slider from minus to plus its strength."),
    ] = False,
    compose: Annotated[
        bool,
        typer.Option(help="Write a strip instead: each picture has one slider more than the last."),
    ] = False,
    registry: Annotated[str, typer.Option(help="Where sliders are looked up.")] = "sliders",
    base: Annotated[
        str, typer.Option(help="`tiny`, a diffusers folder, a hub id, s3:// or a .safetensors.")
    ] = "tiny",
    other_bases: Annotated[
        str, typer.Option(help="Sliders of another base: refuse, warn or allow, as in a job.")
    ] = "warn",
    preset: Annotated[str, typer.Option(help="fast or high.")] = "fast",
    method: Annotated[str, typer.Option(help="How to edit, as editor.method.")] = "displacement",
    region: Annotated[
        str | None,
        typer.Option(help="photo, face or boxes, as editor.region; boxes where --box is given."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="LEFT,TOP,RIGHT,BOTTOM in pixels: edit here. Repeat for several."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes the noise, with the photo's content.")] = 0,
) -> None:
    """Edit one photo without a cluster; write it again, or write a strip of edits (PNG, or as the
    suffix of --out says)."""
    from bs_ray.config import editor_settings
    from bs_ray.config.base import OtherBases
    from bs_ray.editing.single_photo import OnePhoto, boxes_of, strengths_of

    if other_bases not in get_args(OtherBases):
        raise ValueError(f"--other-bases: got {other_bases!r}; expected refuse, warn or allow")
    if sweep and compose:
        raise ValueError("got --sweep and --compose; expected one of them")
    if not slider and not words:
        raise ValueError("got neither --slider nor --words; expected what to change")
    region = region or ("boxes" if box else "photo")
    one = OnePhoto(
        photo,
        strengths_of(slider or []),
        editor_settings({"preset": preset, "method": method, "region": region}),
        base=base,
        registry=registry,
        seed=seed,
        boxes=boxes_of(box or []),
        other_bases=cast(OtherBases, other_bases),
        words=_pairs(words or [], strength or [], target or []),
    )
    strip = "sweep" if sweep else "compose" if compose else ""
    _write(one, strip, out or Path(f"{photo.stem}-{strip}.png" if strip else _edited(photo)))


def _pairs(words: list[str], strengths: list[float], targets: list[str]) -> list[WordsAtStrength]:
    """The sliders of words that were asked for. Raises ValueError."""
    from bs_ray.editing.single_photo import words_of

    if not words and (strengths or targets):
        raise ValueError("got --strength or --target without --words; expected them together")
    pairs = [json.loads(pair) for pair in words]
    if short := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"--words: got {short[0]}; expected two prompts")
    each_strength = _for_each("--strength", strengths or [1.0], len(pairs))
    all_targets: list[str | None] = [*targets] or [None]
    each_target = _for_each("--target", all_targets, len(pairs))
    return [
        words_of((positive, negative), strength, target)
        for (positive, negative), strength, target in zip(
            pairs, each_strength, each_target, strict=True
        )
    ]


def _for_each(name: str, given: list[T], count: int) -> list[T]:
    """One value for each of `count` pairs of words. Raises ValueError."""
    if len(given) not in (1, count):
        raise ValueError(
            f"got {name} {len(given)} times for {count} --words; expected it once, or once for each"
        )
    return given * count if len(given) == 1 else given


def _edited(photo: Path) -> str:
    return f"{photo.stem}-edited{photo.suffix}"


def _write(one: OnePhoto, strip: str, out: Path) -> None:
    """Make the edit, or the strip that was asked for, and write it."""
    if strip:
        (one.sweep() if strip == "sweep" else one.compose()).save(out, quality=90)
        for used in one.editor.sliders.values():
            if used.card.elsewhere:
                report(used.card.elsewhere)
    else:
        data, notes = one.edit()
        out.write_bytes(data)
        for note in notes:
            report(note)
    report(f"wrote {out}")
