"""Settings that come from YAML or a command line, checked against the types of the fields they are for."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

# YAML 1.1 takes 1e-3 for a string: its numbers have a point.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# Fields whose type does not say all that is taken.
_ALSO = {"resume_from_checkpoint": bool}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list, [a, b]"}
_WORDS |= {dict: "a mapping, {a: 1}", type(None): "null"}


def checked_settings(values: Mapping[Any, Any], classes: Iterable[type]) -> dict[str, Any]:
    """The values for the fields of some dataclasses, numbers that YAML left as strings made numbers.

    Args:
        values: Name of a field -> value, as YAML reads it.
        classes: The dataclasses.

    Raises:
        ValueError: Naming the field, with what came and what was expected.
    """
    hints: dict[str, Any] = {}
    for each in classes:
        known = typing.get_type_hints(each)
        hints |= {field.name: known[field.name] for field in dataclasses.fields(each)}
    return {name: _checked(name, value, hints[name]) for name, value in values.items()}


def _checked(name: str, value: Any, hint: Any) -> Any:
    accepted = [*_options(hint), *([_ALSO[name]] if name in _ALSO else [])]
    kinds = [typing.get_origin(each) or each for each in accepted]
    number = float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
    if {int, float} & set(kinds) and _is_number(number):
        if float in kinds:
            return number
        if number == int(number):
            return int(number)
    choices = [member.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]
    if isinstance(value, str) and choices and list not in kinds:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; expected one of {choices}")
        return value
    fits = [each for each, kind in zip(accepted, kinds, strict=True) if _fits(value, each, kind)]
    if not fits:
        expected = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds if kind in _WORDS)) or str(hint)
        raise ValueError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}")
    return value


def _options(hint: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [option for each in typing.get_args(hint) for option in _options(each)] if is_union else [hint]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 2**63


def _fits(value: Any, option: Any, kind: Any) -> bool:
    if kind is typing.Literal:
        return value in typing.get_args(option)
    if kind in (int, float) or not isinstance(kind, type):  # numbers were looked at; YAML makes no callable
        return False
    if kind is list and isinstance(value, list):
        (inner,) = typing.get_args(option) or (Any,)
        return inner is Any or all(isinstance(each, str) for each in value)
    return isinstance(value, kind)
