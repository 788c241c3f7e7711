"""Selection of a model's files in a folder that may hold other files too.

A trainer leaves optimizer states, schedules and copies beside a model. The files with
transformers' names are the model's, in the order in which transformers looks for them;
other weight files count only in a folder that has none of these.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from blip2_jax.convert.files.errors import SourceError

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pth", ".pt")
# A model's file, or its index of shards, in the order of preference.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What trainers write beside a model.
NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state)"
    r".*"
)


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """The weight files of a model.

    Attributes:
      files: their names.
      index: name of the index of shards; "" if there is none.
      shard_of: the file of every array, by the index.
    """

    files: list[str]
    index: str = ""
    shard_of: Mapping[str, str] = dataclasses.field(default_factory=dict)


def model_files(
    names: Collection[str], read_index: Callable[[str], Mapping[str, Any]], where: str
) -> ModelFiles:
    """Select the weight files of a folder.

    An index whose shards are missing is passed over if complete weights follow in the
    order of preference.

    Args:
      names: of all files in the folder.
      read_index: reads an index, by its name.
      where: what the user calls the folder.

    Raises:
      SourceError: there are no weights, or shards that an index names are missing.
    """
    errors = []
    for name in MODEL_FILES:
        if name not in names:
            continue
        if not name.endswith(".json"):
            return ModelFiles([name])
        try:
            return _shards(name, read_index(name), names, where)
        except SourceError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    for suffixes in ((SAFETENSORS,), PICKLES):
        files = sorted(
            name
            for name in names
            if pathlib.PurePath(name).suffix in suffixes
            and "/" not in name
            and not NOT_WEIGHTS.fullmatch(name)
        )
        if files:
            return ModelFiles(files)
    known = ", ".join((SAFETENSORS, *PICKLES))
    others = ", ".join(sorted(names)[:10]) or "none"
    raise SourceError(
        f"no weights in {where}: it has no weights that this package reads ({known}; "
        f"states of a trainer do not count); its files are {others}"
    )


def _shards(
    index: str, content: Mapping[str, Any], names: Collection[str], where: str
) -> ModelFiles:
    """Return the shards that an index names.

    Raises:
      SourceError: the index is damaged, or a shard is missing.
    """
    shard_of = content.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise SourceError(f"{where}/{index} is not an index of shards: no weight_map")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
            raise SourceError(
                f"{where}/{index}: weight_map has {shard!r} for {name}; expected the "
                "name of a file beside the index"
            )
    shards = sorted(set(shard_of.values()))
    if missing := [shard for shard in shards if shard not in names]:
        raise SourceError(
            f"{where} lacks {len(missing)} of the {len(shards)} shards that its "
            f"{index} names: {', '.join(missing[:5])}"
        )
    return ModelFiles(shards, index, shard_of)
