"""The playground: one page for a browser, put together from its parts in this folder.

May import no other room.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_SCRIPTS = ("server", "photo", "faces", "sliders", "words", "sweep", "code", "main")
"""The parts of the page's one script, in their order; they share its scope."""


def page() -> str:
    """The HTML page, with its style and its script in it: it loads nothing else."""
    script = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    text = _read("page.html")
    return text.replace("{{ style }}", _read("style.css")).replace("{{ script }}", script)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
