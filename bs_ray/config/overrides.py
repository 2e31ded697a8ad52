"""Settings on the command line: `key=value`, where the value is text unless its setting is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from bs_ray.config.base import JobError, Settings


def apply_override(
    values: dict[str, Any], override: str, kind: type[Settings] | None = None
) -> None:
    """Set `key=value` (dotted key) in a job's values. Raises JobError.

    kind: the class of the job. Where it wants text the value is taken as it is, with whatever `#`,
    `: ` or `*` it has, and only `null` stands for none; a number, a list or a map is YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise JobError(f"override: got {override!r}; expected key=value, such as steps=400")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise JobError(
                f"override: got {override!r}, but {parent} is a value; expected a section"
            )
    values[leaf] = _value(text, list(_types(kind, key.split("."))), override)


def _value(text: str, types: list[Any], override: str) -> Any:
    if types and all(_is_text(one) or one is type(None) for one in types):
        return None if text == "null" and type(None) in types else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        if not types or any(map(_is_text, types)):
            return text  # an unknown key is named by the check that follows
        first = str(error).splitlines()[0]
        raise JobError(
            f"override: got {override!r}, whose value is no YAML ({first}); expected a number, "
            "a list such as [-1, 0, 1], or a map such as {smile: 1}"
        ) from None


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind is str


def _types(kind: Any, place: list[str]) -> Iterator[Any]:
    """The types that a setting may have; none for one that there is not."""
    if get_origin(kind) is Annotated:
        yield from _types(get_args(kind)[0], place)
    elif get_origin(kind) not in (None, dict, list, tuple, Literal):  # a union, in either spelling
        for one in get_args(kind):
            yield from _types(one, place)
    elif not place:
        yield kind
    elif get_origin(kind) is dict:
        yield from _types(get_args(kind)[1], place[1:])
    elif isinstance(kind, type) and issubclass(kind, Settings) and place[0] in kind.model_fields:
        yield from _types(kind.model_fields[place[0]].annotation, place[1:])
