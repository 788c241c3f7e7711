"""Parameter trees: flatten and nest them, match their paths, split and merge them.

A tree is a nested dict. The path of a leaf is its keys joined by "/", for example
`qformer/layer_0/text_mlp/up/kernel`. Patterns are regular expressions that may match
anywhere in a path (`re.search`): `^visual_encoder/` selects the whole image encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import traverse_util

Tree = dict[str, Any]


class Partition(NamedTuple):
    """Three disjoint parts of one parameter tree.

    Attributes:
      trainable: parameters with gradients and optimizer state; stored in fp32 and in
        checkpoints.
      frozen: constants of the loss, in the compute dtype. Checkpoints name their
        source and digest and do not hold a copy.
      carried: parameters that the loss does not use; checkpoints hold them for a later
        stage.
    """

    trainable: Tree
    frozen: Tree
    carried: Tree


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a nested dict by path, in the tree's order."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """Return the nested dict of leaves by path; the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def matches(patterns: Iterable[str], path: str) -> bool:
    """Return True if any of the patterns matches somewhere in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def split(
    params: Mapping[str, Any],
    frozen: Sequence[str] = (),
    carried: Sequence[str] = (),
    optional: Sequence[str] = (),
    trained: Callable[[str], bool] = lambda path: False,
) -> Partition:
    """Split a parameter tree by path.

    Args:
      params: nested dict; leaves may be arrays, shapes or any other object.
      frozen: patterns of the parameters that are used but not trained.
      carried: patterns of the parameters that are kept but not used. A path that
        matches both lists is frozen.
      optional: patterns that may match no path.
      trained: tells of a path that it is trained, whatever the patterns match.

    Raises:
      ValueError: another pattern matches no path, or no parameter is left to train.
    """
    leaves = flatten(params)
    for name, patterns in (("frozen", frozen), ("carried", carried)):
        check_patterns(name, patterns, leaves, optional)
    trainable: Tree = {}
    frozen_leaves: Tree = {}
    carried_leaves: Tree = {}
    for path, leaf in leaves.items():
        if trained(path):
            trainable[path] = leaf
        elif matches(frozen, path):
            frozen_leaves[path] = leaf
        elif matches(carried, path):
            carried_leaves[path] = leaf
        else:
            trainable[path] = leaf
    if not trainable:
        raise ValueError("frozen and carried cover all parameters: nothing to train")
    return Partition(
        unflatten(trainable), unflatten(frozen_leaves), unflatten(carried_leaves)
    )


def merge(*parts: Mapping[str, Any]) -> Tree:
    """Merge disjoint parts of a tree; the inverse of `split`.

    Raises:
      ValueError: two parts hold the same path.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        leaves = flatten(part)
        duplicates = merged.keys() & leaves.keys()
        if duplicates:
            raise ValueError(f"{min(duplicates)} is in two parts of the parameter tree")
        merged.update(leaves)
    return unflatten(merged)


def check_patterns(
    name: str,
    patterns: Sequence[str],
    paths: Iterable[str],
    optional: Sequence[str] = (),
) -> None:
    """Check that every pattern matches a path.

    Args:
      name: of the list of patterns, for the message.
      patterns: regular expressions.
      paths: of all parameters.
      optional: patterns that may match no path.

    Raises:
      ValueError: another pattern matches no path; the message names the first one.
    """
    paths = list(paths)
    for pattern in patterns:
        if pattern in optional:
            continue
        if not any(re.search(pattern, path) for path in paths):
            tops = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise ValueError(
                f"{name} rule {pattern!r} matches no parameter path; "
                f"the top-level names of the tree are {tops}"
            )
