"""A word of the code has one meaning (docs/vocabulary.md), and a file is about one thing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bs_ray"
TEXT = {".py", ".html", ".js", ".css", ".j2"}
MAX_LINES = 500

# A word that a stranger cannot guess, or that had several meanings -> the name used instead.
INSTEAD = {
    "told": "cond",
    "untold": "uncond",
    "lesson": "TrainBatch, batches",
    "yardstick": "LossNormaliser",
    "going": "EditRun",
    "shelf": "SliderCache",
    "asker": "Caller",
    "asked": "request, wanted",
    "meant": "resolved",
    "notice": "missing_judges_message",
    "pictured": "subject",
    "editone": "single_photo",
    "say": "report",
}


def defined(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of what a file defines: classes, functions, arguments and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words(name: str) -> set[str]:
    """The words of a name, plurals also without their s: `_TopLessons` -> top, lessons, lesson."""
    found = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    return {*found, *(word.removesuffix("s") for word in found)}


def test_no_name_has_a_word_that_was_given_up() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE.parent).as_posix()
        names = [*defined(ast.parse(path.read_text())), (1, path.stem)]
        for line, name in names:
            for word in words(name) & INSTEAD.keys():
                found.append(f"{place}:{line}: got {name}; expected {INSTEAD[word]}")
    assert not found, "\n".join(found)


def test_no_file_is_longer_than_a_reader_remembers() -> None:
    lengths = {
        path.relative_to(PACKAGE.parent).as_posix(): len(path.read_text().splitlines())
        for path in PACKAGE.rglob("*")
        if path.suffix in TEXT
    }
    assert {place: n for place, n in lengths.items() if n > MAX_LINES} == {}


def test_each_room_says_what_it_holds_and_what_it_may_import() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "import" in about, f"{path}: expected a docstring with what the room may import"
