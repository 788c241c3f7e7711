"""PEFT's folders of LoRA matrices beside a Hugging Face BLIP-2 folder.

    adapter_config.json          rank, alpha, names of the adapted modules
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight [rank, in]
                                 base_model.model.MODULE.lora_B.weight [out, rank]

A folder is read by merging its matrices into the arrays of the base, so that it may
adapt any linear layer. Writing keeps A and B apart. Where transformers has one layer
for several kernels (queries, keys and values of the image encoder), their matrices
become blocks of one pair: A's on top of each other, B's on the diagonal.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from blip2_jax.convert.files.checkpoint_files import (
    CheckpointFiles,
    Index,
    SourceError,
)
from blip2_jax.convert.files.formats import open_file
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.convert.files.output import atomic_output, cast, write_json
from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.model_source import expected_shapes
from blip2_jax.convert.tables.name_table import TRANSPOSE, Rule, shorten
from blip2_jax.data import hub
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.low_rank import adapted_kernels, matrix_paths, merge_kernel

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = r"base_model\.model\.(.+)\.lora_([AB])\.weight"
# Settings that change what the matrices mean, with the supported values; the first is
# PEFT's default. Other settings only say how the adapter was made.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    # Others change the weights of the base as well.
    "init_lora_weights": (True, False, None, "gaussian"),
}


class Matrices(NamedTuple):
    """The matrices of one linear layer, as torch stores them.

    Attributes:
      a: [rank, in].
      b: [out, rank].
      scale: factor of b a.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True)
class LoraMatrices:
    """The matrices that a run trained.

    Attributes:
      config: sizes of the model.
      arrays: `PATH/lora_a` and `PATH/lora_b` of this package's kernels.
      rank: of all matrices.
      alpha: scale times rank.
      base: name of the model that was adapted, "" if it has none.
    """

    config: Blip2Config
    arrays: Mapping[str, np.ndarray]
    rank: int
    alpha: float
    base: str

    def summary(self) -> str:
        """Describe the matrices in one line for the user."""
        count = len(adapted_kernels(self.arrays))
        size = sum(array.size for array in self.arrays.values())
        return f"LoRA of rank {self.rank} on {count} kernels, {size:,} parameters"


class AdaptedFiles(CheckpointFiles):
    """A Hugging Face folder whose arrays have the matrices of a PEFT folder merged."""

    def __init__(self, path: str, adapter: str) -> None:
        """Open the folder and read the matrices.

        Args:
          path: the base; see `CheckpointFiles`.
          adapter: PEFT's folder, or a name of the hub.

        Raises:
          SourceError: the adapter cannot be read or does not fit the base.
        """
        super().__init__(path)
        self._matrices = read_adapter(adapter)
        for name, (a, b, _) in self._matrices.items():
            if name not in self:
                raise SourceError(f"{adapter} adapts {name}, which {path} lacks")
            if self.shape(name) != (len(b), a.shape[1]):
                raise SourceError(
                    f"{adapter} adapts {name} as {len(b)} x {a.shape[1]}; in {path} it "
                    f"is {self.shape(name)}"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        if name not in self._matrices:
            return array
        a, b, scale = self._matrices[name]
        return merge_kernel(array, b, a, scale)

    def part(self, name: str, index: Index) -> np.ndarray:
        """Read a part of an array."""
        if name in self._matrices:
            return self[name][index]
        return super().part(name, index)


def read_adapter(spec: str) -> dict[str, Matrices]:
    """Read the matrices of a PEFT folder by the name of the weight they adapt.

    Raises:
      SourceError: it is no PEFT folder, it holds other arrays than matrices of LoRA, or
        a setting means something else than LoRA on linear layers.
    """
    folder = hub.local_path(spec, SETTINGS, WEIGHTS)
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise SourceError(f"{spec} is no folder of PEFT: it has no {name}")
    settings = read_json_object(folder / SETTINGS)
    for name, values in SUPPORTED.items():
        if settings.get(name, values[0]) not in values:
            raise SourceError(
                f"{folder / SETTINGS}: {name} is {settings[name]!r}; only "
                f"{' or '.join(map(repr, values))} is supported"
            )
    file, pairs = open_file(folder / WEIGHTS), dict[str, dict[str, np.ndarray]]()
    for name in file.names():
        match = re.fullmatch(NAME, name)
        if match is None:
            raise SourceError(
                f"{folder / WEIGHTS} holds {name}, no matrix of LoRA on a linear layer"
            )
        pairs.setdefault(match[1], {})[match[2]] = file.read(name)
    return {
        f"{module}.weight": Matrices(
            _matrix(pair, "A", module),
            _matrix(pair, "B", module),
            _scale(settings, module, len(pair["A"])),
        )
        for module, pair in pairs.items()
    }


def _matrix(pair: Mapping[str, np.ndarray], letter: str, module: str) -> np.ndarray:
    if letter not in pair:
        raise SourceError(f"{module} has no lora_{letter}.weight")
    return pair[letter]


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor of a module's matrices: alpha over rank or its square root."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def write_adapter(
    lora: LoraMatrices, output: pathlib.Path, dtype: str | None = None
) -> None:
    """Write matrices as a PEFT folder, which appears only when it is complete.

    Args:
      lora: the matrices.
      output: path of the folder.
      dtype: of the matrices; None: float32.

    Raises:
      SourceError: transformers has no linear layer for one of the kernels.
      FileExistsError: the output exists.
    """
    modules = dict(_modules(lora))
    arrays = {}
    for module, (a, b, _) in modules.items():
        for letter, matrix in (("A", a), ("B", b)):
            name = f"base_model.model.{module}.lora_{letter}.weight"
            arrays[name] = np.ascontiguousarray(cast(matrix, dtype))
    with atomic_output(output) as folder:
        folder.mkdir(parents=True)
        save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / SETTINGS, _settings(lora, modules))


def _settings(lora: LoraMatrices, modules: Mapping[str, Matrices]) -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    ranks = {
        module: len(matrices.a)
        for module, matrices in modules.items()
        if len(matrices.a) != lora.rank
    }
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": lora.base or None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "rank_pattern": ranks,
        "alpha_pattern": {
            module: modules[module].scale * rank for module, rank in ranks.items()
        },
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _modules(lora: LoraMatrices) -> Iterator[tuple[str, Matrices]]:
    """Yield transformers' adapted modules and their matrices."""
    try:
        rules = huggingface_rules(lora.config)
    except ValueError as error:
        raise SourceError(str(error)) from error
    left = set(adapted_kernels(lora.arrays))
    shapes = expected_shapes(lora.config)
    for rule in rules:
        if left.isdisjoint(rule.paths()):
            continue
        left.difference_update(rule.paths())
        if rule.transform is not TRANSPOSE and len(rule.targets) == 1:
            raise SourceError(f"{rule.paths()[0]} is no linear layer in transformers")
        for layer, (name,) in enumerate(rule.source_names()):
            pairs = _pairs(lora, rule, layer)
            paths = rule.target_paths()[0 if rule.stack else layer]
            # A part of a joined matrix may have no matrices that show its width.
            joined = len(paths) > 1
            widths = [shapes[path].shape[-1] for path in paths] if joined else []
            a, b = _join(pairs, widths)
            scale = lora.alpha / lora.rank
            yield name.removesuffix(".weight"), Matrices(a, b, scale)
    if left:
        raise SourceError(f"transformers has no {shorten(sorted(left), 3)}")


Pair = tuple[np.ndarray, np.ndarray]  # of this package: [in, rank], [rank, out]


def _pairs(lora: LoraMatrices, rule: Rule, layer: int) -> list[Pair | None]:
    """Return A and B of each kernel of a rule in one layer; None if not adapted."""
    paths = rule.target_paths()[0 if rule.stack else layer]
    pairs: list[Pair | None] = []
    for path in paths:
        path_a, path_b = matrix_paths(path)
        if path_a not in lora.arrays:
            pairs.append(None)
            continue
        a, b = lora.arrays[path_a], lora.arrays[path_b]
        pairs.append((a[layer], b[layer]) if rule.stack else (a, b))
    return pairs


def _join(pairs: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """Join the matrices of kernels whose outputs are concatenated, as torch's A and B.

    Kernels without matrices have rows of zeros in B.

    Args:
      pairs: matrices of each kernel.
      widths: outputs of each kernel; of a single one its own pair tells them.
    """
    present = [pair for pair in pairs if pair is not None]
    rank, outputs = present[0][1].shape
    widths = widths or [outputs]
    joined = np.zeros((sum(widths), len(present) * rank), np.float32)
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            joined[row : row + width, column : column + rank] = pair[1].T
            column += rank
        row += width
    return np.concatenate([a.T for a, _ in present]), joined
