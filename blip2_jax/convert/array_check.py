"""Comparison of the arrays of a checkpoint with the parameters of a model.

One wrong size changes the shape of many arrays. An error first names the size.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from blip2_jax.convert.files.errors import SourceError
from blip2_jax.convert.tables.name_table import Rule, shorten

MAX_FACTS = 3  # more differences mean that the models have nothing in common

Shape = tuple[int, ...]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


def compare_with_model(
    actual: Shapes,
    expected: Shapes,
    *,
    absent: Sequence[str] = (),
    carried: Sequence[str] = (),
    lacking: Mapping[str, str] | None = None,
    facts: Sequence[str] = (),
) -> None:
    """Compare the parameters of a checkpoint with those of a model.

    Args:
      actual: shapes and dtypes in the checkpoint, by path.
      expected: those of the model.
      absent: patterns (`re.fullmatch`) of paths that the checkpoint may lack.
      carried: patterns of paths that the model may lack.
      lacking: for missing paths, an array of the source that they are made from.
      facts: statements on sizes, for the beginning of the message.

    Raises:
      SourceError: they differ; the message names up to ten paths of each kind.
    """
    lacking = lacking or {}
    missing = [
        f"{path} (no {lacking[path]})" if path in lacking else path
        for path in expected
        if path not in actual and not matches(absent, path)
    ]
    unknown = [
        path for path in actual if path not in expected and not matches(carried, path)
    ]
    shared = [path for path in actual if path in expected]
    other = [path for path in shared if actual[path].shape != expected[path].shape]
    differing = [
        f"{path} is {actual[path].shape}, the model has {expected[path].shape}"
        for path in other
    ]
    integers = [
        f"{path} is {actual[path].dtype}"
        for path in shared
        if not jnp.issubdtype(actual[path].dtype, jnp.floating)
    ]
    facts = [
        *facts,
        *axis_facts([(actual[path].shape, expected[path].shape) for path in other]),
    ]
    problems = {
        "parameters are in no source": missing,
        "arrays do not belong to this model": unknown,
        "arrays have another shape": differing,
        "arrays hold no floating-point numbers": integers,
    }
    lines = [
        f"{len(names)} {problem}: {shorten(names, 3 if facts else 10)}"
        for problem, names in problems.items()
        if names
    ]
    if lines:
        raise SourceError(with_facts(facts, "; ".join(lines)))


def matches(patterns: Sequence[str], name: str) -> bool:
    """Return True if any of the patterns matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def layer_facts(rules: Iterable[Rule], names: Iterable[str]) -> list[str]:
    """Compare the numbers of layers in a name table and in a checkpoint.

    Args:
      rules: the table.
      names: of the checkpoint's arrays.
    """
    expected: dict[str, int] = {}
    for rule in rules:
        if rule.layers:
            for source in rule.sources:
                prefix = source.partition("{}")[0]
                depth = max(expected.get(prefix, 0), max(rule.layers) + 1)
                expected[prefix] = depth
    actual: dict[str, int] = collections.defaultdict(int)
    for name in names:
        for match in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            prefix = name[: match.start()]
            if prefix in expected:
                actual[prefix] = max(actual[prefix], int(match[0]) + 1)
    return [
        f"{prefix}* has {actual[prefix]} layers where the model has {depth}"
        for prefix, depth in expected.items()
        if actual[prefix] not in (0, depth)
    ]


def axis_facts(shapes: Sequence[tuple[Shape, Shape]]) -> list[str]:
    """Name the sizes by which shapes differ.

    Args:
      shapes: of each array: the shape in the checkpoint and that in the model.

    Returns:
      A statement for each pair of differing sizes; [] if there are more than three.
    """
    pairs = {
        pair
        for ours, theirs in shapes
        if len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True)
        if pair[0] != pair[1]
    }
    if len(pairs) > MAX_FACTS:
        return []
    return [
        f"a size is {ours:,} where the model has {theirs:,}"
        for ours, theirs in sorted(pairs)
    ]


def with_facts(facts: Sequence[str], message: str) -> str:
    """Put statements before a message about single arrays."""
    return f"{'; '.join(facts)}: {message}" if facts else message
