"""Image files as text."""

import base64
import binascii
import re


def base64_bytes(text: str) -> bytes:
    """Base64, also as a data URL, in lines, for URLs, and without padding. Raises ValueError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = re.sub(r"\s", "", text).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("got text that is not base64; expected base64 or a data URL") from None
