"""What goes between the decode pool and its decoders: JSON, and bytes and arrays as they are.

A decoder reads what strangers made, so nothing that it sends is ever run: there is no pickle.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np

_TYPES = {"|u1": np.uint8, "<u2": np.uint16}


def send(stream: BinaryIO, thing: Any) -> None:
    """Write JSON values, and bytes and arrays (uint8, uint16) among them. The caller flushes."""
    parts: list[memoryview] = []
    body = memoryview(json.dumps(_packed(thing, parts)).encode())
    parts.insert(0, body)
    stream.write(struct.pack(f"<I{len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        stream.write(part)


def receive(stream: BinaryIO) -> Any:
    """What `send` sent, tuples as lists. Raises EOFError where the other side has gone."""
    (count,) = struct.unpack("<I", _exactly(stream, 4))
    sizes = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    body, *parts = [_exactly(stream, size) for size in sizes]
    return _unpacked(json.loads(body), parts)


def _packed(thing: Any, parts: list[memoryview]) -> Any:
    """The thing as JSON, where objects with a "#" stand for bytes and arrays, which go to parts."""
    if isinstance(thing, bytes):
        parts.append(memoryview(thing))
        return {"#": "bytes", "part": len(parts) - 1}
    if isinstance(thing, np.ndarray):
        parts.append(np.ascontiguousarray(thing).reshape(-1).view(np.uint8).data)
        return {
            "#": "array",
            "part": len(parts) - 1,
            "type": thing.dtype.str,
            "shape": list(thing.shape),
        }
    if isinstance(thing, dict):
        return {name: _packed(value, parts) for name, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_packed(value, parts) for value in thing]
    return thing


def _unpacked(thing: Any, parts: list[bytearray]) -> Any:
    if isinstance(thing, list):
        return [_unpacked(value, parts) for value in thing]
    if not isinstance(thing, dict):
        return thing
    if thing.get("#") == "bytes":
        return bytes(parts[thing["part"]])
    if thing.get("#") == "array":
        flat = np.frombuffer(parts[thing["part"]], _TYPES[thing["type"]])
        return flat.reshape(thing["shape"])
    return {name: _unpacked(value, parts) for name, value in thing.items()}


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    if stream.readinto(data) != size:  # type: ignore[attr-defined]
        raise EOFError
    return data
