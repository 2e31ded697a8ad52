"""What the README tells people to type exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from bs_ray.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^bs-ray [^\n#|]+", README, re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse_and_their_files_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{line!r} names no command"
    command.make_context("bs-ray", words, resilient_parsing=False)
    for word in words:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file(), f"{word} is not there"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.MULTILINE))
    assert {name for pair in named for name in pair if name} <= targets


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
