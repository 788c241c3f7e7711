"""Checkpoints of other projects as this package's parameters, converted on access.

Weights are streamed: memory holds the arrays of one rule of a name table at a time,
and a reader of a few parameters converts only those.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.convert.files.checkpoint_files import (
    CheckpointFiles,
    LazyArrays,
    SourceError,
)
from blip2_jax.convert.positions import (
    POSITIONS,
    interpolate_positions,
    resize_note,
)
from blip2_jax.convert.tables.name_table import (
    Array,
    Arrays,
    Rule,
    Transform,
    shorten,
)
from blip2_jax.models.presets import FeaturesConfig, ViTConfig

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Part:
    """Checkpoint files and the name table that reads them.

    Attributes:
      source: arrays by their project's names.
      rules: the table.
      leftovers: patterns (`re.fullmatch`) of names that the source may hold and no
        rule reads.
      notes: changes other than renaming, as lines for the user.
    """

    source: CheckpointFiles
    rules: Sequence[Rule]
    leftovers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def part_at_size(
    source: CheckpointFiles,
    rules: Sequence[Rule],
    config: ViTConfig | FeaturesConfig,
    leftovers: tuple[str, ...],
) -> Part:
    """Return a part whose position embeddings fit the image size of `config`.

    EVA-CLIP's are interpolated with aligned centres, CLIP's with aligned corners.
    """
    if not isinstance(config, ViTConfig):
        return Part(source, rules, leftovers)
    table, notes = [], []
    for rule in rules:
        if rule.targets == (POSITIONS,) and rule.sources[0] in source:
            num_tokens = source.shape(rule.sources[0])[-2]
            if num_tokens != config.num_tokens:
                rule = _interpolated(rule, config)
                notes.append(resize_note(num_tokens, config.num_tokens))
        table.append(rule)
    return Part(source, table, leftovers, tuple(notes))


def _interpolated(rule: Rule, config: ViTConfig) -> Rule:
    """Return the rule of the position embeddings with an interpolation added."""

    def to_ours(arrays: Arrays) -> Arrays:
        (positions,) = rule.transform.to_ours(arrays)
        if not isinstance(positions, np.ndarray):  # a tracer of `jax.eval_shape`
            shape = (config.num_tokens, positions.shape[-1])
            return (jnp.zeros(shape, positions.dtype),)
        return (
            interpolate_positions(
                positions, config.num_tokens, align_corners=config.pre_norm
            ),
        )

    def to_source(arrays: Arrays) -> Arrays:
        raise ValueError("interpolated position embeddings cannot be restored")

    return Rule(rule.source, rule.target, Transform(to_ours, to_source))


class ConvertedArrays(LazyArrays):
    """This package's parameters by path, converted from one part or several.

    The first part that has all source arrays of a rule provides its parameters. They
    keep the dtype of the source. A rule with several parameters converts all at once;
    the others are kept until their next access, so that a pass in order reads every
    source array once.

    Attributes:
      notes: changes other than renaming, as lines for the user.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Match names with rules; only headers of the sources are read.

        Raises:
          SourceError: a part holds names that neither its table nor its leftovers
            mention.
        """
        self._rule_of: dict[str, tuple[Part, Rule]] = {}
        self._lacking: dict[str, tuple[str, ...]] = {}
        self._shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for part in parts:
            _check_unused(part)
            self._add(part)
        super().__init__(self._rule_of)
        self._pending: dict[str, np.ndarray] = {}
        self.notes = tuple(note for part in parts for note in part.notes)

    def _add(self, part: Part) -> None:
        complete = []
        for rule in part.rules:
            lacking = tuple(name for name in rule.names() if name not in part.source)
            for path in rule.paths():
                if path in self._rule_of:
                    continue
                if lacking:
                    self._lacking.setdefault(path, lacking)
                else:
                    self._rule_of[path] = part, rule
                    complete.append(rule)
        self._shapes = _shapes(part.source, complete) | self._shapes

    def __getitem__(self, path: str) -> np.ndarray:
        if path not in self._pending:
            part, rule = self._rule_of[path]
            arrays = rule.to_ours(part.source)
            self._pending = {name: np.asarray(array) for name, array in arrays.items()}
        return self._pending.pop(path)

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter without reading it."""
        return self._shapes[path].shape

    def origin(self, path: str) -> str:
        """Return the file or folder that provides a parameter."""
        return self._rule_of[path][0].source.spec

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype of a parameter without reading it."""
        return np.dtype(self._shapes[path].dtype)

    @property
    def precision(self) -> str:
        """The dtype to compute in: "bfloat16" if any parameter has 16 bits."""
        half = any(self.dtype(path).itemsize < 4 for path in self)
        return "bfloat16" if half else "float32"

    def check(
        self,
        expected: Shapes,
        absent: Sequence[str] = (),
        carried: Sequence[str] = (),
    ) -> None:
        """Compare with the parameters of a model, shapes included.

        Args:
          expected: shapes of the model's parameters by path.
          absent: patterns (`re.fullmatch`) of paths that these sources may lack.
          carried: patterns of paths that the model may lack.

        Raises:
          SourceError: they differ; the message names up to ten paths of each kind.
        """
        missing = [
            f"{path} (no {self._lacking[path][0]})" if path in self._lacking else path
            for path in expected
            if path not in self and not _matches(absent, path)
        ]
        unknown = [
            path
            for path in self
            if path not in expected and not _matches(carried, path)
        ]
        differing = [
            f"{path} is {self.shape(path)}, the model has {expected[path].shape}"
            for path in self
            if path in expected and self.shape(path) != expected[path].shape
        ]
        problems = {
            "parameters are in no source": missing,
            "arrays do not belong to this model": unknown,
            "arrays have another shape": differing,
        }
        lines = [
            f"{len(names)} {problem}: {shorten(names)}"
            for problem, names in problems.items()
            if names
        ]
        if lines:
            raise SourceError("; ".join(lines))


def _shapes(
    source: CheckpointFiles, rules: list[Rule]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Trace rules to find the shapes of their parameters."""
    names = {name for rule in rules for name in rule.names()}
    structs = {
        name: jax.ShapeDtypeStruct(source.shape(name), source.dtype(name))
        for name in names
    }

    def convert(arrays: dict[str, jax.Array]) -> dict[str, Array]:
        return {k: v for rule in rules for k, v in rule.to_ours(arrays).items()}

    return jax.eval_shape(convert, structs)


def _check_unused(part: Part) -> None:
    """Raise a SourceError if the source holds names that the part does not know."""
    known = {name for r in part.rules for name in (*r.names(), *r.aliases)}
    unknown = [
        name
        for name in part.source
        if name not in known and not _matches(part.leftovers, name)
    ]
    if unknown:
        raise SourceError(
            f"{part.source.name} holds {len(unknown)} arrays that this model does not "
            f"have: {shorten(unknown)}"
        )


def _matches(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
