"""Name tables: rules that map another project's arrays to this package's and back.

A table is a list of `Rule`s that can be read in both directions. A rule names the
source arrays and the target parameters of one group, and the transform between them:

    Rule("ln_vision.weight", "ln_vision/scale")
    Rule("h.{}.fc.weight", "blocks/fc/kernel", TRANSPOSE, layers=range(12), stack=True)
    Rule("qkv.weight", ("query/kernel", "key/kernel", "value/kernel"), split(3, True))

With `layers`, `{}` in a name is replaced by the number of the layer. With `stack` the
parameter has a leading axis over these layers; without, its path has a `{}` too.
Arrays keep their dtype. They may be numpy arrays, jax arrays or tracers, so that
`jax.eval_shape` converts shapes.

"Ours" are this package's parameters by "/"-joined path, "source" the other project's
arrays by name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from blip2_jax.nn.trees import flatten, unflatten

Array = jax.Array | np.ndarray
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function from the source arrays of one layer to ours, and its inverse."""

    to_ours: Callable[[Arrays], Arrays]
    to_source: Callable[[Arrays], Arrays]


def _elementwise(
    to_ours: Callable[[Any], Any], to_source: Callable[[Any], Any]
) -> Transform:
    """Return a transform that treats each array of a group alike."""
    return Transform(
        lambda arrays: tuple(to_ours(array) for array in arrays),
        lambda arrays: tuple(to_source(array) for array in arrays),
    )


IDENTITY = _elementwise(lambda a: a, lambda a: a)
TRANSPOSE = _elementwise(lambda a: a.T, lambda a: a.T)  # torch stores [out, in]


def leading_axes(count: int) -> Transform:
    """Return a transform that drops `count` leading axes of length one."""
    return _elementwise(
        lambda a: a.reshape(a.shape[count:]),
        lambda a: a.reshape((1,) * count + a.shape),
    )


def patch_kernel(size: int) -> Transform:
    """Return a transform of a convolution's [D, 3, size, size] kernel.

    Ours is [size * size * 3, D], for a matmul with flattened patches.
    """
    return _elementwise(
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
    )


def split(parts: int | Sequence[int], transpose: bool) -> Transform:
    """Return a transform that splits one source array along its first axis.

    Args:
      parts: number of equal parts, or the length of each part.
      transpose: transpose each part after the split.
    """

    def turn(a: Any) -> Any:
        return a.T if transpose else a

    def cut(arrays: Arrays) -> Arrays:
        (joined,) = arrays
        sizes = [joined.shape[0] // parts] * parts if isinstance(parts, int) else parts
        ends = itertools.accumulate(sizes)
        return tuple(
            turn(joined[end - size : end])
            for end, size in zip(ends, sizes, strict=True)
        )

    def join(arrays: Arrays) -> Arrays:
        concat = arrays[0].__array_namespace__().concat
        return (concat([turn(a) for a in arrays], axis=0),)

    return Transform(cut, join)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Source names, our paths and the transform between them.

    Attributes:
      source: name or names of source arrays, with `{}` for the layer.
      target: our path or paths.
      transform: from the source arrays of one layer to ours.
      layers: numbers that replace `{}`; None: the names have no `{}`.
      stack: our parameter has a leading axis over the layers.
      aliases: further names of the one source array (tied parameters). They are
        written too. A source may lack any of the names; `available` selects one.
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    transform: Transform = IDENTITY
    layers: Sequence[int] | None = None
    stack: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Source names, with `{}` for the layer."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def targets(self) -> tuple[str, ...]:
        """Our paths, with `{}` for the layer unless stacked."""
        return (self.target,) if isinstance(self.target, str) else self.target

    def source_names(self) -> list[tuple[str, ...]]:
        """Return the source names, one tuple per layer."""
        return [_fill(self.sources, layer) for layer in self._layers()]

    def target_paths(self) -> list[tuple[str, ...]]:
        """Return our paths, one tuple per layer; a stacked rule has one tuple."""
        if self.stack:
            return [self.targets]
        return [_fill(self.targets, layer) for layer in self._layers()]

    def names(self) -> list[str]:
        """Return the source names of all layers."""
        return [name for group in self.source_names() for name in group]

    def paths(self) -> list[str]:
        """Return our paths of all layers."""
        return [path for group in self.target_paths() for path in group]

    def available(self, names: Container[str]) -> Rule:
        """Return the rule that reads an alias if a source has no other name.

        Of arrays that share memory, `safetensors.torch.save_model` keeps one name.
        """
        if not self.aliases or self.sources[0] in names:
            return self
        present = [alias for alias in self.aliases if alias in names]
        if not present:
            return self
        others = [name for name in self.aliases if name != present[0]]
        aliases = (self.sources[0], *others)
        return dataclasses.replace(self, source=present[0], aliases=aliases)

    def to_ours(self, source: Mapping[str, Array]) -> dict[str, Array]:
        """Convert source arrays to ours.

        Args:
          source: holds all arrays of this rule; each is looked up once.

        Returns:
          Our arrays by path.
        """
        layers = (
            self.transform.to_ours(tuple(source[name] for name in names))
            for names in self.source_names()
        )
        if self.stack:
            return _by_name(self.target_paths(), [_stack(layers, len(self._layers()))])
        return _by_name(self.target_paths(), layers)

    def to_source(self, ours: Mapping[str, Array]) -> dict[str, Array]:
        """Convert our arrays, by path, to source arrays by name."""
        layers = [tuple(ours[path] for path in paths) for paths in self.target_paths()]
        if self.stack:
            count = len(self._layers())
            layers = [tuple(a[i] for a in layers[0]) for i in range(count)]
        arrays = [self.transform.to_source(a) for a in layers]
        source = _by_name(self.source_names(), arrays)
        return source | {alias: arrays[0][0] for alias in self.aliases}

    def _layers(self) -> Sequence[int | None]:
        return (None,) if self.layers is None else self.layers


@dataclasses.dataclass(frozen=True)
class Converted:
    """The result of `to_ours`.

    Attributes:
      params: our nested tree.
      missing: our paths whose source arrays are absent or incomplete.
      unused: source names that no rule mentions.
    """

    params: PyTree
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def to_ours(
    source: Mapping[str, Array], rules: Iterable[Rule], ignore: Iterable[str] = ()
) -> Converted:
    """Convert the part of a source that the table covers.

    Args:
      source: arrays by name; each is looked up once, so that lazy mappings work.
      rules: the table.
      ignore: names of buffers, which are not reported as unused.
    """
    ours: dict[str, Array] = {}
    missing: list[str] = []
    unused = set(source) - set(ignore)
    for rule in (rule.available(source) for rule in rules):
        names = set(rule.names())
        if names <= set(source):
            ours |= rule.to_ours(source)
        else:
            missing += rule.paths()
        unused -= names.union(rule.aliases)
    return Converted(unflatten(ours), tuple(missing), tuple(sorted(unused)))


def to_ours_complete(
    source: Mapping[str, Array], rules: Iterable[Rule], ignore: Iterable[str] = ()
) -> PyTree:
    """Convert a source that must match the table exactly.

    Raises:
      ValueError: arrays are absent or unknown; the message names up to ten of each.
    """
    converted = to_ours(source, rules, ignore)
    for problem, names in (
        ("lacks arrays for", converted.missing),
        ("holds unknown arrays", converted.unused),
    ):
        if names:
            raise ValueError(f"the source {problem}: {shorten(names)}")
    return converted.params


def to_source(params: PyTree, rules: Iterable[Rule]) -> dict[str, Array]:
    """Convert a nested tree of ours to source arrays by name.

    Raises:
      KeyError: the tree lacks a path of the table.
    """
    ours = flatten(params)
    source: dict[str, Array] = {}
    for rule in rules:
        source |= rule.to_source(ours)
    return source


def shorten(names: Sequence[str], count: int = 10) -> str:
    """Join the first `count` names and say how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def linear(
    source: str,
    target: str,
    *,
    bias: bool = True,
    layers: Sequence[int] | None = None,
    stack: bool = False,
) -> list[Rule]:
    """Return the rules of a torch Linear: transposed kernel, and bias."""
    rules = [Rule(f"{source}.weight", f"{target}/kernel", TRANSPOSE, layers, stack)]
    if bias:
        rules.append(Rule(f"{source}.bias", f"{target}/bias", IDENTITY, layers, stack))
    return rules


def norm(
    source: str,
    target: str,
    *,
    bias: bool = True,
    layers: Sequence[int] | None = None,
    stack: bool = False,
) -> list[Rule]:
    """Return the rules of a torch LayerNorm (or, without bias, an RMS norm)."""
    names = [("weight", "scale")] + ([("bias", "bias")] if bias else [])
    return [
        Rule(f"{source}.{theirs}", f"{target}/{ours}", IDENTITY, layers, stack)
        for theirs, ours in names
    ]


def _fill(names: tuple[str, ...], layer: int | None) -> tuple[str, ...]:
    return names if layer is None else tuple(name.format(layer) for name in names)


def _stack(layers: Iterator[Arrays], count: int) -> Arrays:
    """Stack the arrays of each layer along a new leading axis.

    Numpy layers are copied into the result one by one, so that memory holds the result
    and one layer.
    """
    first = next(layers)
    if not isinstance(first[0], np.ndarray):
        groups = zip(first, *layers, strict=True)
        return tuple(group[0].__array_namespace__().stack(group) for group in groups)
    stacked = tuple(np.empty((count, *array.shape), array.dtype) for array in first)
    for number, arrays in enumerate(itertools.chain([first], layers)):
        for result, array in zip(stacked, arrays, strict=True):
            if array.dtype != result.dtype:
                raise ValueError(
                    f"layer {number} is {array.dtype}, the layers before it are "
                    f"{result.dtype}"
                )
            result[number] = array
    return stacked


def _by_name(
    names: Iterable[tuple[str, ...]], arrays: Iterable[Arrays]
) -> dict[str, Array]:
    return {
        name: array
        for group, values in zip(names, arrays, strict=True)
        for name, array in zip(group, values, strict=True)
    }
