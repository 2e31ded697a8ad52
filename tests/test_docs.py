"""What the pages tell people to type, to set and to open is there."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from typer import BadParameter
from typer.main import get_command

import bs_ray
from bs_ray.cli import app
from bs_ray.config import EditJob, EvalJob, JobError, ServeJob, TableJob, TrainJob, load

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bs_ray"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]
}
README = PAGES["README.md"]
MAKEFILE = (ROOT / "Makefile").read_text()
each_page = pytest.mark.parametrize("page", sorted(PAGES))

UsageError = BadParameter.__base__
"""What a command line is refused with."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_REPOSITORY_PATH = re.compile(r"((?:bs_ray|jobs|cluster|tests|docs)/[\w./-]*)(?:::(\w+))?")


# --- what a page says ----------------------------------------------------------------------------
def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for found, body in _BLOCK.findall(text) if found == language]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", text)


def codes(text: str) -> list[str]:
    """What stands in backticks in the prose; a line break there counts as a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]


def typed(text: str) -> Iterator[tuple[list[str], bool]]:
    """Commands as words, and whether each is whole: in a sentence arguments may be left out."""
    for body in blocks(text, "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            ends = [i for i, word in enumerate(words) if word in ("|", ">", "&", "&&")]
            yield words[: ends[0] if ends else None], True
    for code in codes(text):
        if code.startswith(("bs-ray ", "make ")):
            yield shlex.split(code), False


def anchors(text: str) -> set[str]:
    """The headings of a page, as a repository's page names them in links."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows(text: str, first_column: str) -> list[list[str]]:
    """The cells of all tables whose first column is called so."""
    found, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first_column:
            inside = True
        elif inside and not line.startswith("|--"):
            found.append(cells)
    return found


# --- what there is -------------------------------------------------------------------------------
def sections(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections(part)]


def choices(annotation: Any) -> Iterator[str]:
    """The words that an annotation allows."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    for part in get_args(annotation):
        yield from choices(part)


def known(model: type[BaseModel]) -> Iterator[str]:
    """The settings of a class and its sections, as `losses.eta` and as `eta`, and their words."""
    for name, field in model.model_fields.items():
        yield name
        yield from choices(field.annotation)
        for section in sections(field.annotation):
            for inner in known(section):
                yield from (inner, f"{name}.{inner}")


KNOWN = {name for job in (TrainJob, EditJob, ServeJob, EvalJob, TableJob) for name in known(job)}
SECTIONS = {name.partition(".")[0] for name in KNOWN if "." in name}


# --- what is wrong with a page -------------------------------------------------------------------
def wrong_commands(text: str) -> Iterator[str]:
    for words, whole in typed(text):
        shown = shlex.join(words)
        if words[:1] == ["make"]:
            yield from (f"{shown}: {why}" for why in wrong_make(words[1:]))
        elif words[:1] == ["bs-ray"]:
            yield from (f"{shown}: {why}" for why in wrong_call(words[1:], whole))
    mentioned = set(re.findall(r"\bjobs/[\w/-]+\.yaml", text))
    yield from (f"{path} is not there" for path in mentioned if not (ROOT / path).is_file())


def wrong_make(words: list[str]) -> Iterator[str]:
    for word in words:
        name, setting, _ = word.partition("=")
        line = rf"^{name} \?=" if setting else rf"^{name}:.*##"
        if not re.search(line, MAKEFILE, re.MULTILINE):
            yield f"the Makefile has no {name}"


def wrong_call(words: list[str], whole: bool) -> Iterator[str]:
    command, path = get_command(app), ["bs-ray"]
    while words and words[0] in getattr(command, "commands", {}):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    if hasattr(command, "commands"):
        options = {"--help", "-h", *(name for option in command.params for name in option.opts)}
        if whole or not set(words) <= options:
            yield f"{' '.join(path)} has no such command or option"
        return
    try:
        given = command.make_context(" ".join(path), words).params
    except UsageError as error:
        message = error.format_message()
        if whole or not message.startswith("Missing "):
            yield message
        return
    overrides = given.get("overrides") or []
    for override in overrides:
        name = override.partition("=")[0]
        if name not in KNOWN and not name.startswith("splits."):  # a split has any name
            yield f"no setting {override}"
    job = str(given.get("job", ""))
    if job.startswith("jobs/"):
        try:
            load(ROOT / job, overrides, None if path[-1] == "submit" else path[-1])
        except JobError as error:
            yield str(error)


def wrong_settings(text: str) -> Iterator[str]:
    """Settings in backticks (`steps=400`, `preset: fast`, `losses.eta`) and in tables of them."""
    named = [m[1] for code in codes(text) if (m := re.match(r"([a-z_.]+)(?:=|: )", code))]
    for code in codes(text):
        section, dot, name = code.partition(".")
        if section in SECTIONS and dot and re.fullmatch(r"[a-z_]+", name):
            named.append(code)
    for cells in rows(text, "Setting"):
        named += [re.match(r"[\w.]*", code)[0] for code in codes(cells[0])]  # type: ignore[index]
    yield from (f"no setting {name}" for name in named if name not in KNOWN)


def wrong_links(page: str, text: str) -> Iterator[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / place).resolve() if place else (ROOT / page).resolve()
        if not (file.exists() and file.is_relative_to(ROOT.resolve())):
            yield f"{target} leads nowhere"
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
            yield f"{target}: no such heading"


def wrong_paths(text: str) -> Iterator[str]:
    """Files and folders in backticks, also as `path/to/file.py::name`."""
    for code in codes(text):
        found = _REPOSITORY_PATH.fullmatch(code)
        if found and not (ROOT / found[1]).exists():
            yield f"{found[1]} is not there"
        elif found and found[2] and found[2] not in defined(ROOT / found[1]):
            yield f"{found[1]} has no {found[2]}"
        elif re.fullmatch(r"\w+\.py", code) and not (PACKAGE / code).exists():
            yield f"{code} is not in bs_ray/"


def defined(path: Path) -> set[str]:
    """The names that a module has at its top."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def wrong_examples(text: str, folder: Path) -> Iterator[str]:
    """Job files and Python shown on the page."""
    for body in blocks(text, "yaml"):
        file = folder / "job.yaml"
        file.write_text(body)
        try:
            load(file)
        except JobError as error:
            yield str(error)
    for body in blocks(text, "python"):
        try:
            compile(body, "example", "exec")
        except SyntaxError as error:
            yield f"{error}: {body}"


# --- tests ---------------------------------------------------------------------------------------
@each_page
def test_commands_parse_and_their_jobs_load(page: str) -> None:
    assert not list(wrong_commands(PAGES[page]))


@each_page
def test_settings_exist(page: str) -> None:
    assert not list(wrong_settings(PAGES[page]))


@each_page
def test_links_lead_somewhere(page: str) -> None:
    assert not list(wrong_links(page, PAGES[page]))


@each_page
def test_files_are_there(page: str) -> None:
    assert not list(wrong_paths(PAGES[page]))


@each_page
def test_examples_are_whole(page: str, tmp_path: Path) -> None:
    assert not list(wrong_examples(PAGES[page], tmp_path))


def test_these_checks_find_what_is_wrong(tmp_path: Path) -> None:
    commands = "\n".join(
        [
            "```bash",
            "bs-ray edit",
            "bs-ray train jobs/tiny/train-smile.yaml stesp=4",
            "bs-ray serve jobs/tiny/train-smile.yaml",
            "bs-ray bench",
            "make tea  # hot",
            "```",
            "`bs-ray edit --sampel 3`, `bs-ray brew`, `make demo TEA=1`, jobs/tiny/none.yaml",
        ]
    )
    assert len(list(wrong_commands(commands))) == 10, "stesp is wrong as a name and in its job"
    settings = "`losses.etta`, `prest: fast`, `stesp=4`\n\n| Setting | |\n|---|---|\n| `wokers` | |"
    assert len(list(wrong_settings(settings))) == 4
    links = "[a](no.md) [b](README.md#none) [c](../..) ![d](none.png) <img src='x'> [e](#none)"
    assert len(list(wrong_links("README.md", links))) == 5
    paths = "`bs_ray/none.py`, `bs_ray/cli/__init__.py::none`, `none.py`, `tests/`, `jobs/none/`"
    assert len(list(wrong_paths(paths))) == 4
    examples = "```yaml\nkind: tain\n```\n```python\nprint(\n```\n"
    assert len(list(wrong_examples(examples, tmp_path))) == 2


def test_readme_is_a_way_in() -> None:
    assert 10_000 <= len(README.encode()) <= 12_000
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    assert {name for name in pages if f"(docs/{name})" not in README} == set()


def test_readme_names_every_room() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    named = {code for cells in rows(README, "Room of `bs_ray/`") for code in codes(cells[0])}
    assert named == {f"{room}/" for room in rooms}


def test_readme_repeats_figures_of_the_results() -> None:
    results = set(re.findall(r"\d+(?:\.\d+)?", PAGES["docs/results.md"]))
    told = {
        number
        for cells in rows(README, "What was measured")
        for number in re.findall(r"\d+(?:\.\d+)?", cells[1])
    }
    assert len(told) > 10 and told <= results


def test_every_command_is_on_a_page() -> None:
    text = " ".join(" ".join(PAGES.values()).split())
    names = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        names += [f"{name} {inner}" for inner in below] if below else [name]
    assert [name for name in names if f"bs-ray {name}" not in text] == []


def test_the_vocabulary_is_small() -> None:
    words = [cells[0] for cells in rows(PAGES["docs/vocabulary.md"], "Word")]
    assert 20 <= len(words) <= 30 and len(set(words)) == len(words)


def test_a_reader_of_the_paper_finds_each_part() -> None:
    parts = " ".join(cells[0] for cells in rows(PAGES["docs/method.md"], "Paper"))
    equations = {int(number) for number in re.findall(r"\d+", parts.partition("Fig.")[0])}
    assert equations == set(range(1, 12))
    assert all(part in parts for part in ("III-C", "Fig. 3", "Table I", "Table II"))


def test_messages_of_the_on_call_table_are_the_programs_own() -> None:
    said = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    shown = [cells[0] for cells in rows(PAGES["docs/operations.md"], "You see")]
    quotes = [
        part
        for cell in shown
        for quote in re.findall(r'"(.+?)"', cell)
        for part in re.split(r"\s*\.\.\.\s*", quote)
        if len(part) > 2
    ]
    assert len(quotes) > 8
    assert [quote for quote in quotes if not any(quote in text for text in said)] == []


def test_the_changes_begin_with_this_version() -> None:
    first = re.findall(r"^## (\S+)", PAGES["CHANGELOG.md"], re.MULTILINE)[0]
    assert first in ("Unreleased", bs_ray.__version__)
