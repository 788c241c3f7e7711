"""`blip2_jax.load`: a model from disk, ready to use."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from blip2_jax.convert.model_source import (
    TOWERS,
    ModelSource,
    build_model,
    expected_shapes,
)
from blip2_jax.convert.native_folder import reader
from blip2_jax.data.dataclass_options import from_options
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.precision import PRECISIONS
from blip2_jax.nn.trees import unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training.open_model import ExtraWeights, open_model


def load(
    path: str | pathlib.Path,
    *,
    which: str | int = "best",
    precision: str | None = None,
    batch_size: int = 32,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    **beside: Any,
) -> Blip2:
    """Open a model.

    Args:
      path: the directory of a run of this package (`--workdir` of training), a folder
        that `launch/convert.py` wrote, a Hugging Face BLIP-2 folder, or a LAVIS file.
      which: checkpoint of a run: "best" (by evaluation; the last if there was none),
        "last" or a step.
      precision: "float32" or "bfloat16"; None as in training, or as the file holds
        its frozen towers (half precision of either kind means bfloat16).
      batch_size: rows of the largest compiled program.
      mesh: sizes of the axes `data`, `fsdp` and `tensor` (-1: the rest), to spread
        the model over all devices and the rows over the first two; None: the first
        device has it all.
      devices: of the mesh, where it is not over all there are.
      **beside: fields of `opening.ExtraWeights`, for what the path does not say: `vision`,
        `language_model`, `qformer_tokenizer`, `language_tokenizer`, `sizes`,
        `image_size`, ...

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: something else is there: its subclasses SourceError, ConfigError,
        WeightsError say what; CheckpointError, a run without the checkpoint.
    """
    extra_weights = from_options(ExtraWeights, beside, "load")
    return model_from_source(
        open_model(path, extra_weights, which),
        precision,
        batch_size,
        mesh,
        devices,
    )


def model_from_source(
    opened: ModelSource,
    precision: str | None = None,
    batch_size: int = 32,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Blip2:
    """A model to use, its arrays placed one by one, on one device or a mesh.

    Towers take the precision's dtype, the rest float32. What a Hugging Face stage-1
    model lacks is zero; `caption` says so.

    Raises:
      ValueError: no such precision, or a mesh of another number of devices.
    """
    precision = precision or opened.precision
    if precision not in PRECISIONS:
        given = ", ".join(PRECISIONS)
        raise ValueError(f"precision {precision!r}: there are {given}")
    dtype = jnp.dtype(precision)
    model = build_model(opened.config, opened.question_in_qformer, dtype)
    wanted = expected_shapes(opened.config, opened.question_in_qformer)
    axes: dict[str, Any] = dict(mesh or {})
    over = sharding.make_mesh(**axes, devices=devices) if axes else None
    params = {}
    for path in [path for path in opened.arrays if path in wanted]:
        kept = dtype if path.startswith(TOWERS) else jnp.dtype(jnp.float32)
        read = reader(opened.arrays, path)
        if over is None:
            params[path] = jax.device_put(read(...).astype(kept))
        else:
            shape = wanted[path].shape
            layout = NamedSharding(over, sharding.parameter_spec(path, shape, over))
            params[path] = sharding.make_sharded_array(shape, layout, read, kept)
    for path in wanted.keys() - params.keys():
        params[path] = jnp.zeros(wanted[path].shape)
    qformer_tokenizer = _tokenizer(opened.qformer_tokenizer, language_model=False)
    if isinstance(model, Blip2Stage1):
        return Blip2Retriever(
            model,
            unflatten(params),
            qformer_tokenizer=qformer_tokenizer,
            prompt=opened.config.prompt,
            batch_size=batch_size,
            absent=opened.absent,
        )
    return Blip2Generator(
        model,
        unflatten(params),
        language_tokenizer=_tokenizer(opened.language_tokenizer, language_model=True),
        qformer_tokenizer=qformer_tokenizer,
        prompt=opened.config.prompt,
        question_prompt=opened.question_prompt,
        batch_size=batch_size,
    )


def _tokenizer(spec: str, *, language_model: bool) -> Any:
    return load_tokenizer(spec, language_model=language_model) if spec else None
