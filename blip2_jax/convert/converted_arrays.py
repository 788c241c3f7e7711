"""Checkpoints of other projects as this package's parameters, converted on access.

Weights are streamed: memory holds the arrays of one rule of a name table at a time,
and a reader of a few parameters converts only those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.convert.array_check import (
    Shapes,
    compare_with_model,
    layer_facts,
    matches,
    with_facts,
)
from blip2_jax.convert.files.checkpoint_files import (
    CheckpointFiles,
    Index,
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
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig

ROWS_TO_COMPARE = 4096  # of two token tables at a time


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

    They are interpolated as in the code of the encoder's family (`ViTConfig`).
    """
    if not isinstance(config, ViTConfig):
        return Part(source, rules, leftovers)
    table, notes = [], []
    for rule in rules:
        if rule.targets == (POSITIONS,) and rule.sources[0] in source:
            num_positions = source.shape(rule.sources[0])[-2]
            if num_positions != config.num_positions:
                rule = _interpolated(rule, config)
                notes.append(resize_note(num_positions, config))
        table.append(rule)
    return Part(source, table, leftovers, tuple(notes))


def _interpolated(rule: Rule, config: ViTConfig) -> Rule:
    """Return the rule of the position embeddings with an interpolation added."""

    def to_ours(arrays: Arrays) -> Arrays:
        (positions,) = rule.transform.to_ours(arrays)
        if not isinstance(positions, np.ndarray):  # a tracer of `jax.eval_shape`
            shape = (config.num_positions, positions.shape[-1])
            return (jnp.zeros(shape, positions.dtype),)
        return (interpolate_positions(positions, config),)

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
            mention, or some arrays of a rule and not the others.
        """
        self._rule_of: dict[str, tuple[Part, Rule]] = {}
        self._lacking: dict[str, tuple[str, ...]] = {}
        self._shapes: dict[str, jax.ShapeDtypeStruct] = {}
        self._parts = parts
        for part in parts:
            _check_unused(part)
            _check_complete(part)
            self._add(part, part.rules)
        for part in parts:
            self._add(part, [rule.available(part.source) for rule in part.rules])
        super().__init__(self._rule_of)
        self._pending: dict[str, np.ndarray] = {}
        self.notes = tuple(note for part in parts for note in part.notes)

    def _add(self, part: Part, rules: Sequence[Rule]) -> None:
        """Use a part's rules for the parameters that have no source yet."""
        complete = []
        for rule in rules:
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
            self._check_twins(path)
            arrays = rule.to_ours(part.source)
            self._pending = {name: np.asarray(array) for name, array in arrays.items()}
        return self._pending.pop(path)

    def _check_twins(self, path: str) -> None:
        """Compare the array of a parameter with its copies under other names.

        Raises:
          SourceError: a copy differs; the message names both.
        """
        used, rule = self._rule_of[path]
        for part in self._parts:
            for other in part.rules:
                if not other.aliases or path not in other.paths():
                    continue
                for name in (*other.sources, *other.aliases):
                    same = part is used and name == rule.sources[0]
                    if same or name not in part.source:
                        continue
                    if not _equal(used.source, rule.sources[0], part.source, name):
                        raise SourceError(
                            f"{rule.sources[0]} in {used.source.name} and {name} in "
                            f"{part.source.name} differ, but they are one array in "
                            "this model"
                        )

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
        incomplete = any(
            path not in self and not matches(absent, path) for path in expected
        )
        facts = [
            fact
            for part in self._parts
            if incomplete
            for fact in layer_facts(part.rules, part.source)
        ]
        compare_with_model(
            {path: self._shapes[path] for path in self},
            expected,
            absent=absent,
            carried=carried,
            lacking={path: names[0] for path, names in self._lacking.items()},
            facts=facts,
        )


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

    try:
        return jax.eval_shape(convert, structs)
    except (TypeError, ValueError, IndexError) as error:
        raise SourceError(_wrong_form(source, rules)) from error


def _wrong_form(source: CheckpointFiles, rules: list[Rule]) -> str:
    """Describe the first array whose shape does not suit its rule."""
    for rule in rules:
        names = rule.names()
        structs = {
            name: jax.ShapeDtypeStruct(source.shape(name), source.dtype(name))
            for name in names
        }
        try:
            jax.eval_shape(rule.to_ours, structs)
        except (TypeError, ValueError, IndexError):
            shapes = sorted({structs[name].shape for name in names}, key=str)
            return (
                f"{rule.paths()[0]} cannot be made from {names[0]} in {source.name}, "
                f"which has the shape {' or '.join(map(str, shapes))}"
            )
    return f"{source.name} holds arrays of other shapes than this model"


def _equal(
    source: CheckpointFiles, name: str, other: CheckpointFiles, twin: str
) -> bool:
    """Compare two arrays, a few rows at a time, in the narrower of their dtypes."""
    shape, dtypes = source.shape(name), (source.dtype(name), other.dtype(twin))
    if shape != other.shape(twin):
        return False
    dtype = min(dtypes, key=lambda dtype: dtype.itemsize)
    rows = shape[0] if shape else 0
    blocks: list[Index] = [
        (slice(start, min(start + ROWS_TO_COMPARE, rows)),)
        for start in range(0, rows, ROWS_TO_COMPARE)
    ]
    return all(
        source.part(name, block).astype(dtype).tobytes()
        == other.part(twin, block).astype(dtype).tobytes()
        for block in blocks or [...]
    )


def _check_unused(part: Part) -> None:
    """Raise a SourceError if the source holds names that the part does not know."""
    known = {name for r in part.rules for name in (*r.names(), *r.aliases)}
    unknown = [
        name
        for name in part.source
        if name not in known and not matches(part.leftovers, name)
    ]
    if unknown:
        facts = layer_facts(part.rules, part.source)
        message = (
            f"{part.source.name} holds {len(unknown)} arrays that this model does not "
            f"have: {shorten(unknown, 3 if facts else 10)}"
        )
        raise SourceError(with_facts(facts, message))


def _check_complete(part: Part) -> None:
    """Raise a SourceError if the source holds only some arrays of a rule."""
    missing = []
    for rule in part.rules:
        groups = rule.source_names()
        paths = rule.target_paths() * (len(groups) if rule.stack else 1)
        lacking = [
            f"{path[0]} (no {name})"
            for names, path in zip(groups, paths, strict=True)
            for name in names
            if name not in part.source
        ]
        if len(lacking) < len(rule.names()):
            missing += lacking
    if missing:
        facts = layer_facts(part.rules, part.source)
        message = (
            f"{part.source.name} lacks {len(missing)} arrays of a group: "
            f"{shorten(missing, 3 if facts else 10)}"
        )
        raise SourceError(with_facts(facts, message))
