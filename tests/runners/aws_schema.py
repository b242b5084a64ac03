"""Checks a request against AWS's published model of it: names, types, choices, lengths and patterns.

botocore carries that model, but itself looks only at names, types and least lengths, and so does moto: without an
account, nothing else tells whether the service would take our requests.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

_TYPES: dict[str, type | tuple[type, ...]] = {
    "structure": dict,
    "map": dict,
    "list": list,
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
}
# The patterns are Java's, and re does not know these classes; \w takes in what these letters and numbers do, and a few
# marks beside.
_CLASSES = {r"\p{L}": r"\w", r"\p{N}": r"\w", r"\p{Z}": " ", r"\p{Alnum}": "A-Za-z0-9"}


def problems(operation: str, request: dict[str, Any]) -> list[str]:
    """What SageMaker would refuse in a request, one line each; empty where nothing is wrong."""
    return list(_check(_model().operation_model(operation).input_shape, request, operation))


@cache
def _model() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("sagemaker")


def _check(shape: Any, value: Any, path: str) -> Iterator[str]:
    expected = _TYPES.get(shape.type_name)
    if expected and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
        yield f"{path}: expected {shape.type_name}, found {type(value).__name__}"
    elif shape.type_name == "structure":
        yield from _check_members(shape, value, path)
    elif shape.type_name == "list":
        yield from _within(shape, len(value), path, "entries")
        for place, one in enumerate(value):
            yield from _check(shape.member, one, f"{path}[{place}]")
    elif shape.type_name == "map":
        yield from _within(shape, len(value), path, "entries")
        for key, one in value.items():
            yield from _check(shape.key, key, f"{path} key {key!r}")
            yield from _check(shape.value, one, f"{path}.{key}")
    elif shape.type_name == "string":
        yield from _check_text(shape, value, path)
    elif shape.type_name in ("integer", "long"):
        yield from _within(shape, value, path, "")


def _check_members(shape: Any, value: dict[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if name not in value:
            yield f"{path}.{name}: lacking"
    for name, one in value.items():
        if name in shape.members:
            yield from _check(shape.members[name], one, f"{path}.{name}")
        else:
            yield f"{path}.{name}: not known to the service"


def _check_text(shape: Any, value: str, path: str) -> Iterator[str]:
    if shape.enum and value not in shape.enum:
        yield f"{path}: {value!r} is none of the {len(shape.enum)} values that it takes"
    pattern = shape.metadata.get("pattern", "")
    if pattern and not re.fullmatch(_as_python(pattern), value):
        yield f"{path}: {value!r} does not have the form {pattern}"
    yield from _within(shape, len(value), path, "characters")


def _within(shape: Any, size: float, path: str, unit: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if (low is not None and size < low) or (high is not None and size > high):
        yield f"{path}: {size} {unit}, expected {low} to {high}".replace(" ,", ",")


def _as_python(pattern: str) -> str:
    for theirs, ours in _CLASSES.items():
        pattern = pattern.replace(theirs, ours)
    return pattern
