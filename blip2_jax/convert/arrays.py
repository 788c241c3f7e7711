"""A source seen through a name table: our arrays by path, made when asked for.

So weights stream: at no time is more held than the arrays of one rule, and a reader
that wants a few of them pays for those alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.files.lazy_arrays import LazyArrays
from blip2_jax.convert.tables.name_table import Array, Rule, listed

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Part:
    """A source and the table to read it by.

    Attributes:
      source: arrays by their project's names.
      rules: the table.
      leftovers: patterns of names that the source may hold and nobody reads.
      notes: what the table does beside renaming, for the user.
    """

    source: CheckpointFiles
    rules: Sequence[Rule]
    leftovers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ConvertedArrays(LazyArrays):
    """Our arrays by "/"-joined path, from one source or several.

    The first part that has all arrays of a rule provides its paths. Arrays keep the
    source's dtype. What a rule gives beside the array asked for is kept until it is
    asked for in its turn, so going through in order reads everything once.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Match names; nothing is read but the sources' headers.

        Raises:
          SourceError: a part holds names that neither its table nor its leftovers
            mention.
        """
        self._found: dict[str, tuple[Part, Rule]] = {}
        self._lacking: dict[str, tuple[str, ...]] = {}
        self._shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for part in parts:
            _check_unused(part)
            self._add(part)
        super().__init__(self._found)
        self._pending: dict[str, np.ndarray] = {}
        self.notes = tuple(note for part in parts for note in part.notes)

    def _add(self, part: Part) -> None:
        whole = []
        for rule in part.rules:
            lacking = tuple(name for name in rule.names() if name not in part.source)
            for path in rule.paths():
                if path not in self._found and lacking:
                    self._lacking.setdefault(path, lacking)
                elif path not in self._found:
                    self._found[path] = part, rule
                    whole.append(rule)
        self._shapes = _shapes(part.source, whole) | self._shapes

    def __getitem__(self, path: str) -> np.ndarray:
        if path not in self._pending:
            part, rule = self._found[path]
            made = rule.to_ours(part.source)
            self._pending = {name: np.asarray(value) for name, value in made.items()}
        return self._pending.pop(path)

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return self._shapes[path].shape

    def origin(self, path: str) -> str:
        """The file or folder that provides an array."""
        return str(self._found[path][0].source.path)

    def dtype(self, path: str) -> np.dtype:
        """Dtype of an array, without reading it."""
        return np.dtype(self._shapes[path].dtype)

    def check(
        self,
        expected: Shapes,
        absent: Sequence[str] = (),
        carried: Sequence[str] = (),
    ) -> None:
        """Compare with the parameters of a model, shapes included.

        Args:
          expected: of the model, by path.
          absent: patterns of paths that these sources need not have.
          carried: patterns of paths that the model need not have.

        Raises:
          SourceError: the difference, up to ten names of each kind.
        """
        missing = [
            f"{path} (no {self._lacking[path][0]})" if path in self._lacking else path
            for path in expected
            if path not in self._found and not _matches(absent, path)
        ]
        unknown = [
            path
            for path in self._found
            if path not in expected and not _matches(carried, path)
        ]
        differ = [
            f"{path} is {self.shape(path)}, the model has {expected[path].shape}"
            for path in self._found
            if path in expected and self.shape(path) != expected[path].shape
        ]
        _refuse(missing=missing, unknown=unknown, differ=differ)


def digest(array: np.ndarray) -> str:
    """SHA-256 of the values in row-major, little-endian bytes."""
    array = np.atleast_1d(np.ascontiguousarray(array))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.view(np.uint8).data).hexdigest()


def _shapes(
    source: CheckpointFiles, rules: list[Rule]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what rules will give, by tracing them."""
    names = {name for rule in rules for name in rule.names()}
    structs = {
        name: jax.ShapeDtypeStruct(source.shape(name), source.dtype(name))
        for name in names
    }

    def convert(arrays: dict[str, jax.Array]) -> dict[str, Array]:
        return {k: v for rule in rules for k, v in rule.to_ours(arrays).items()}

    return jax.eval_shape(convert, structs)


def _check_unused(part: Part) -> None:
    known = {name for r in part.rules for name in (*r.names(), *r.aliases)}
    unknown = [
        name
        for name in part.source
        if name not in known and not _matches(part.leftovers, name)
    ]
    if unknown:
        raise SourceError(
            f"{part.source.path} holds {len(unknown)} arrays that this model does not "
            f"have: {listed(unknown)}"
        )


def _refuse(**found: list[str]) -> None:
    says = {
        "missing": "parameters are in no source",
        "unknown": "arrays are not of this model",
        "differ": "arrays have another size",
    }
    parts = [f"{len(f)} {says[k]}: {listed(f)}" for k, f in found.items() if f]
    if parts:
        raise SourceError("; ".join(parts))


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
