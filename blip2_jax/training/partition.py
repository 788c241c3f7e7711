"""The split of one parameter tree into trainable, frozen and carried parts.

Parts are nested dicts that hold a subset of the tree's leaves. Which leaf goes where
is decided by lists of regular expressions over "/"-joined paths, found anywhere in the
path (`re.search`): `^visual_encoder/` is the whole tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import traverse_util

Tree = dict[str, Any]


class Partition(NamedTuple):
    """Three disjoint parts of one parameter tree.

    Attributes:
      trainable: gets gradients, optimizer state, fp32 storage, checkpoints.
      frozen: used by the loss as constants, in the compute dtype; named by source
        and digest in checkpoints, not copied.
      carried: not used by the loss at all, kept in checkpoints for a later stage.
    """

    trainable: Tree
    frozen: Tree
    carried: Tree


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": leaf} of a nested dict, in the tree's order."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def matches(rules: Iterable[str], path: str) -> bool:
    """Whether any of the regular expressions is found in the path."""
    return any(re.search(rule, path) for rule in rules)


def split(
    params: Mapping[str, Any], frozen: Sequence[str] = (), carried: Sequence[str] = ()
) -> Partition:
    """Divide a parameter tree by path.

    Args:
      params: nested dict; leaves may be arrays, shapes or anything else.
      frozen: regexes of the paths that are used but not trained.
      carried: regexes of the paths that are kept but not used. `frozen` goes first.

    Raises:
      ValueError: a regex matches no path, or nothing is left to train.
    """
    flat = flatten(params)
    for name, rules in (("frozen", frozen), ("carried", carried)):
        check_rules(name, rules, flat)
    parts: tuple[Tree, Tree, Tree] = ({}, {}, {})
    for path, leaf in flat.items():
        part = 1 if matches(frozen, path) else 2 if matches(carried, path) else 0
        parts[part][path] = leaf
    if not parts[0]:
        raise ValueError("frozen and carried cover all parameters: nothing to train")
    return Partition(*map(unflatten, parts))


def merge(*parts: Mapping[str, Any]) -> Tree:
    """The tree whose disjoint parts are given; the inverse of `split`.

    Raises:
      ValueError: two parts hold the same path.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        flat = flatten(part)
        twice = merged.keys() & flat.keys()
        if twice:
            raise ValueError(f"{min(twice)} is in two parts of the parameter tree")
        merged.update(flat)
    return unflatten(merged)


def check_rules(name: str, rules: Sequence[str], paths: Iterable[str]) -> None:
    """Raise a ValueError that names the first regex that matches no path."""
    paths = list(paths)
    for rule in rules:
        if not any(re.search(rule, path) for path in paths):
            tops = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ValueError(
                f"{name} rule {rule!r} matches no parameter path; "
                f"the tree begins with {tops}"
            )
