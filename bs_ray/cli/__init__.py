"""The command line `bs-ray`, a module for each group of commands.

May import every room, but imports a verb's room only when the verb is called, so that `bs-ray
--help` is quick. Exit codes: 0 done, 1 failed, 2 bad input (the message says got, expected and what
to do).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from bs_ray import __version__
from bs_ray.cli import (
    bases,
    bench,
    edit,
    edit_one,
    evaluate,
    ingest,
    keys,
    serve,
    sliders,
    tiny,
    tools,
    train,
)
from bs_ray.cli.shared import console

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, apply, serve and measure continuous attribute sliders (LoRA), on Ray.",
    epilog="Start with [bold]bs-ray demo[/]; then read jobs/tiny/*.yaml.",
)
for verbs in (train, edit, edit_one, serve, evaluate, tools):
    app.add_typer(verbs.app)
for name, group in {
    "tiny": tiny,
    "ingest": ingest,
    "bases": bases,
    "sliders": sliders,
    "keys": keys,
    "bench": bench,
}.items():
    app.add_typer(group.app, name=name)

_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C, once everything has cleaned up."""


def main() -> None:
    """Run the command line. An error in the user's input becomes one message and exit code 2."""
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


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.print(f"bs-ray {__version__}")
        raise typer.Exit
