"""Dataclasses built from mappings of options, with errors that name the wrong key."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def is_integer(value: Any) -> bool:
    """Return True for whole numbers of Python and NumPy, but not for booleans."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_keys(
    keys: Iterable[str], allowed: Iterable[str], required: Iterable[str], name: str
) -> None:
    """Check that all keys are allowed and that none of the required keys is missing.

    Args:
      keys: the keys of a mapping.
      allowed: all keys that it may have.
      required: the keys that it must have.
      name: name of the mapping in error messages, e.g. "data.image".

    Raises:
      ValueError: a key is unknown or missing; the message lists the allowed keys and
        the one nearest to an unknown key.
    """
    keys, allowed = list(keys), list(allowed)
    known = ", ".join(allowed)
    for key in keys:
        if key not in allowed:
            nearest = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"{name} has no key {key!r}; its keys are {known}{hint}")
    for key in required:
        if key not in keys:
            raise ValueError(f"{name} needs the key {key!r}; its keys are {known}")


def from_options(kind: type[T], options: Mapping[str, Any], name: str) -> T:
    """Build a dataclass from a mapping of field names to values.

    Args:
      kind: the dataclass.
      options: a plain or ml_collections dict.
      name: name of the mapping in error messages, e.g. "data.image".

    Raises:
      ValueError: a key is no field, or a field without a default is missing.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    values = dict(options.items())
    check_keys(values, [field.name for field in fields], required, name)
    return kind(**values)


def replace_options(instance: T, options: Mapping[str, Any], name: str) -> T:
    """Replace fields of a dataclass instance as `dataclasses.replace` does.

    Raises:
      ValueError: a key is no field; the message begins with `name`.
    """
    fields = dataclasses.fields(instance)  # type: ignore[arg-type]
    values = dict(options.items())
    check_keys(values, [field.name for field in fields], (), name)
    return dataclasses.replace(instance, **values)  # type: ignore[type-var]
