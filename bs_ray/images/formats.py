"""Which image files are photos here."""

import re
from importlib.util import find_spec

from PIL import features

SUFFIXES_OF_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif"),
    "AVIF": (".avif",),
}
"""Pillow's name of a format -> how the names of its files end, in lower case."""
PLUGINS = {"HEIF": "pillow-heif", "AVIF": "a Pillow with AVIF"}
"""Format that not every installation reads -> what reads it."""
SUFFIXES = tuple(suffix for some in SUFFIXES_OF_FORMAT.values() for suffix in some)
"""Of all formats, readable here or not: what is a photo does not depend on the machine."""
SUFFIX_OF = {kind: suffixes[0] for kind, suffixes in SUFFIXES_OF_FORMAT.items()}
COMPANION = r"(^|/)(\._|__MACOSX/|@eaDir/|(\.DS_Store|[Tt]humbs\.db|desktop\.ini)$)"
"""What systems put beside photos, at any depth; much of it is named like a photo."""


class EmptyInputError(ValueError):
    """A prefix without photos; the message says what was looked for."""


def _readable() -> tuple[str, ...]:
    here = {"AVIF": features.check("avif"), "HEIF": find_spec("pillow_heif") is not None}
    if here["HEIF"]:
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    return tuple(kind for kind in SUFFIXES_OF_FORMAT if here.get(kind, True))


FORMATS = _readable()
"""Pillow's names of the formats that are read and written here."""


def is_companion(key: str) -> bool:
    """Whether a system put a file beside photos, so that it is none itself."""
    return re.search(COMPANION, key) is not None
