"""Pictures of an image-pair slider: one folder for each strength, `-1/face.png` and
`1/face.png`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bs_ray.datasets.sources import READ_OPTIONS
from bs_ray.images.formats import SUFFIXES, EmptyInputError
from bs_ray.storage import Store

if TYPE_CHECKING:
    import ray.data


def read_pairs(uri: str) -> ray.data.Dataset:
    """The pictures as rows `key` ("<strength>/<name>") and `bytes`.

    Raises EmptyInputError where there is no picture in a folder, and StorageError.
    """
    import ray.data

    store = Store(uri)
    keys = pair_keys(store)
    return ray.data.from_items([{"key": key} for key in keys]).map(
        lambda row: {"key": row["key"], "bytes": store.read(row["key"])}, **READ_OPTIONS
    )


def pair_keys(store: Store) -> list[str]:
    """Keys of the pictures one folder down. Raises EmptyInputError where there are none."""
    keys = [
        entry.key
        for entry in store.list()
        if entry.key.count("/") == 1 and entry.key.lower().endswith(SUFFIXES)
    ]
    if not keys:
        raise EmptyInputError(
            f"pairs.images: got {store.uri}, which holds no picture in a folder named by its "
            'strength; expected "-1/face.png", "1/face.png" and so on'
        )
    return keys


def pair_sets(keys: list[str]) -> list[dict[float, int]]:
    """Keys `<strength>/<name>` -> for every name with two strengths or more: strength -> index.

    Raises ValueError for a folder whose name is no number, and where no two pictures belong
    together.
    """
    sets = _by_name(keys)
    found = [dict(sorted(one.items())) for _, one in sorted(sets.items()) if len(one) > 1]
    if not found:
        raise ValueError(
            f"pairs: got {len(keys)} pictures of which no two have the same name in different "
            'folders; expected pairs such as "-1/face.png" and "1/face.png"'
        )
    return found


def alone(keys: list[str]) -> list[str]:
    """The pictures without a partner, which no pair has a part in. Raises as `pair_sets`."""
    return [keys[n] for one in _by_name(keys).values() if len(one) == 1 for n in one.values()]


def _by_name(keys: list[str]) -> dict[str, dict[float, int]]:
    sets: dict[str, dict[float, int]] = {}
    for number, key in enumerate(keys):
        folder, _, name = key.partition("/")
        try:
            strength = float(folder)
        except ValueError:
            raise ValueError(
                f"pairs: got picture {key}, whose folder is no number; expected one folder for "
                'each strength, such as "-1/face.png" and "1/face.png"'
            ) from None
        sets.setdefault(name.rpartition(".")[0] or name, {})[strength] = number
    return sets
