"""Name tables: how another project's arrays become ours and ours become theirs.

A table is a list of `Rule`s, read in both directions. A rule names the sources and
the targets of one group of arrays and the transform between them:

    Rule("ln_vision.weight", "ln_vision/scale")
    Rule("h.{}.fc.weight", "blocks/fc/kernel", TRANSPOSE, layers=range(12), stack=True)
    Rule("qkv.weight", ("query/kernel", "key/kernel", "value/kernel"), SPLIT_COLUMNS)

Where `layers` is given, `{}` stands for the layer's number. With `stack` our array
has a leading axis over those layers; without, our path holds a `{}` too. Arrays keep
their dtype; numpy arrays, jax arrays and tracers (`jax.eval_shape`) all do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from blip2_jax.nn.trees import flatten, unflatten

Array = jax.Array | np.ndarray
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A map of the source arrays of one layer to ours, and its inverse."""

    to_ours: Callable[[Arrays], Arrays]
    to_source: Callable[[Arrays], Arrays]


def _each(to_ours: Callable[[Any], Any], to_source: Callable[[Any], Any]) -> Transform:
    return Transform(
        lambda arrays: tuple(to_ours(a) for a in arrays),
        lambda arrays: tuple(to_source(a) for a in arrays),
    )


IDENTITY = _each(lambda a: a, lambda a: a)
TRANSPOSE = _each(lambda a: a.T, lambda a: a.T)  # torch keeps [out, in]


def leading_axes(count: int) -> Transform:
    """The source has `count` leading axes of length one that we do not keep."""
    return _each(
        lambda a: a.reshape(a.shape[count:]),
        lambda a: a.reshape((1,) * count + a.shape),
    )


def patch_kernel(size: int) -> Transform:
    """A convolution's [D, 3, size, size] kernel, ours [size * size * 3, D]."""
    return _each(
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
    )


def split(count: int, transpose: bool) -> Transform:
    """One source array, cut along its first axis into `count` of ours."""

    def turn(a: Any) -> Any:
        return a.T if transpose else a

    def cut(arrays: Arrays) -> Arrays:
        (whole,) = arrays
        size = whole.shape[0] // count
        return tuple(turn(whole[i * size : (i + 1) * size]) for i in range(count))

    def join(arrays: Arrays) -> Arrays:
        concat = arrays[0].__array_namespace__().concat
        return (concat([turn(a) for a in arrays], axis=0),)

    return Transform(cut, join)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Source names, our paths, and what lies between (see the module's head).

    `aliases` are further names of the one source array (tied parameters): written,
    never read.
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
        """The concrete source names, one tuple a layer."""
        return [_fill(self.sources, layer) for layer in self._layers()]

    def target_paths(self) -> list[tuple[str, ...]]:
        """Our concrete paths, one tuple a layer; stacked rules have one in all."""
        if self.stack:
            return [self.targets]
        return [_fill(self.targets, layer) for layer in self._layers()]

    def names(self) -> list[str]:
        """All source names."""
        return [name for group in self.source_names() for name in group]

    def paths(self) -> list[str]:
        """All of our paths."""
        return [path for group in self.target_paths() for path in group]

    def to_ours(self, source: Mapping[str, Array]) -> dict[str, Array]:
        """Our arrays by path, of a source that has all of this rule's arrays."""
        layers = (
            self.transform.to_ours(tuple(source[name] for name in names))
            for names in self.source_names()
        )
        if self.stack:
            return _by_name(self.target_paths(), [_stack(layers, len(self._layers()))])
        return _by_name(self.target_paths(), layers)

    def to_source(self, ours: Mapping[str, Array]) -> dict[str, Array]:
        """Source arrays by name, of our flat tree."""
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
    """Result of `to_ours`.

    `params` is our nested tree; `missing` are paths whose sources are absent or
    incomplete, `unused` source names that no rule mentions.
    """

    params: PyTree
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def to_ours(
    source: Mapping[str, Array], rules: Iterable[Rule], ignore: Iterable[str] = ()
) -> Converted:
    """Reads a source by the table, as far as it goes.

    Args:
      source: arrays by name; each is looked up once, so that lazy mappings work.
      rules: the table.
      ignore: source names that carry nothing (buffers).
    """
    ours: dict[str, Array] = {}
    missing: list[str] = []
    unused = set(source) - set(ignore)
    for rule in rules:
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
    """`to_ours` of a source that must match the table exactly.

    Raises:
      ValueError: arrays are absent or unknown; the message names up to ten of each.
    """
    converted = to_ours(source, rules, ignore)
    for what, names in (
        ("lacks arrays for", converted.missing),
        ("holds unknown arrays", converted.unused),
    ):
        if names:
            raise ValueError(f"the source {what}: {listed(names)}")
    return converted.params


def to_source(params: PyTree, rules: Iterable[Rule]) -> dict[str, Array]:
    """Our tree under the source's names.

    Raises:
      KeyError: the tree lacks a path of the table.
    """
    ours = flatten(params)
    source: dict[str, Array] = {}
    for rule in rules:
        source |= rule.to_source(ours)
    return source


def listed(names: Sequence[str], count: int = 10) -> str:
    """The first `count` names, and how many more there are."""
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
    """The rules of a torch Linear: transposed kernel, and bias."""
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
    """The rules of a torch LayerNorm (or, without bias, an RMS norm)."""
    names = [("weight", "scale")] + ([("bias", "bias")] if bias else [])
    return [
        Rule(f"{source}.{theirs}", f"{target}/{ours}", IDENTITY, layers, stack)
        for theirs, ours in names
    ]


def _fill(names: tuple[str, ...], layer: int | None) -> tuple[str, ...]:
    return names if layer is None else tuple(name.format(layer) for name in names)


def _stack(layers: Iterator[Arrays], count: int) -> Arrays:
    """Arrays of each layer, one after the other, along a new leading axis.

    Of numpy arrays no more than one layer is held beside the result.
    """
    first = next(layers)
    if not isinstance(first[0], np.ndarray):
        every = zip(first, *layers, strict=True)
        return tuple(group[0].__array_namespace__().stack(group) for group in every)
    stacked = tuple(np.empty((count, *array.shape), array.dtype) for array in first)
    for number, arrays in enumerate(itertools.chain([first], layers)):
        for whole, array in zip(stacked, arrays, strict=True):
            if array.dtype != whole.dtype:
                raise ValueError(
                    f"layer {number} is {array.dtype}, those before it {whole.dtype}"
                )
            whole[number] = array
    return stacked


def _by_name(
    names: Iterable[tuple[str, ...]], arrays: Iterable[Arrays]
) -> dict[str, Array]:
    return {
        name: array
        for group, values in zip(names, arrays, strict=True)
        for name, array in zip(group, values, strict=True)
    }
