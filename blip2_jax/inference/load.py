"""`blip2_jax.load`: open a model of any origin and place it on devices."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from blip2_jax.convert import native_folder
from blip2_jax.convert.converted_arrays import Part
from blip2_jax.convert.detect import DESCRIPTIONS, kind_of
from blip2_jax.convert.files.checkpoint_files import (
    CheckpointFiles,
    SourceError,
    part_reader,
)
from blip2_jax.convert.huggingface_folder import huggingface_sizes, open_huggingface
from blip2_jax.convert.instructblip_folder import (
    instructblip_sizes,
    open_instructblip,
)
from blip2_jax.convert.lavis_file import open_lavis, released_sizes
from blip2_jax.convert.minigpt4_file import minigpt4_sizes, open_minigpt4
from blip2_jax.convert.model_source import (
    TOWERS,
    ModelSource,
    build_model,
    expected_shapes,
)
from blip2_jax.convert.peft_adapter import AdaptedFiles
from blip2_jax.convert.positions import config_at_size
from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.convert.weights import text_branch_part, with_text_branch_sizes
from blip2_jax.data import hub
from blip2_jax.data.dataclass_options import check_keys, from_options
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.inference.shipped_models import SHIPPED_MODELS, open_shipped_model
from blip2_jax.models import presets
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.precision import PRECISIONS
from blip2_jax.nn.quantized import check_scheme, quantize_parameter
from blip2_jax.nn.trees import Tree, unflatten
from blip2_jax.parallel import sharding
from blip2_jax.parallel.files import read_json
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.checkpoints import is_run
from blip2_jax.training.trained_model import open_run

# Fields of `ExtraWeights` that do not apply to complete models of this package.
COMPLETE = ("vision", "language_model", "text_branch", "lora", "qformer", "sizes")
# The parts that a MiniGPT-4 file lacks.
MINIGPT4_PARTS = ("qformer", "vision", "language_model")


@dataclasses.dataclass(frozen=True)
class ExtraWeights:
    """Files that complete a model whose own file or folder lacks a part.

    Paths may be names of the Hugging Face hub (see `data.hub`).

    Attributes:
      vision: file or folder of the image encoder: for a LAVIS file, or for a run whose
        `config.frozen_sources.vision` has moved.
      language_model: the same of the language model.
      text_branch: a stage-1 file or a BERT, for a stage-2 model that lacks the
        Q-Former's text branch.
      lora: a PEFT folder of LoRA matrices for a Hugging Face folder, merged into its
        weights.
      qformer: a LAVIS file of BLIP-2, whose Q-Former a MiniGPT-4 file goes with.
      qformer_tokenizer, language_tokenizer: directories, in place of the model's own.
      prompt_template: "chat": prompts are turns of a user in the chat template of the
        language model's tokenizer; "plain": they are not; "": as the model was trained.
      sizes: name of a preset or JSON file of sizes (`presets.to_plain`), for a file
        that has the sizes of no released model.
      image_size: other than the model's own, in pixels; position embeddings are
        interpolated.
    """

    vision: str = ""
    language_model: str = ""
    text_branch: str = ""
    lora: str = ""
    qformer: str = ""
    qformer_tokenizer: str = ""
    language_tokenizer: str = ""
    prompt_template: str = ""
    sizes: str = ""
    image_size: int | None = None


def load(
    path: str | pathlib.Path,
    *,
    which: str | int = "best",
    precision: str | None = None,
    batch_size: int = 32,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    quantize: str = "",
    **extra_weights: Any,
) -> Blip2:
    """Load a model for inference.

    Args:
      path: the directory of a run of this package (`--workdir` of training), a folder
        that `launch/convert.py` wrote, a Hugging Face BLIP-2 folder, a LAVIS file, a
        name of the Hugging Face hub, such as "Salesforce/blip2-opt-2.7b" or
        "hf://ORG/NAME@REVISION", or a model of this package: "shapes" or
        "shapes_stage1". Paths may be on a store, such as "s3://BUCKET/KEY"; the files
        are copied to the user's cache.
      which: checkpoint of a run: "best" by evaluation (the last if there was no
        evaluation), "last" or a step.
      precision: "float32" or "bfloat16". None: a run computes as in training, and a
        file in bfloat16 if it holds parameters of 16 bits.
      batch_size: rows of the largest compiled program.
      mesh: sizes of the axes `data`, `fsdp` and `tensor` (-1: the remaining devices).
        The model is sharded over all axes, rows over the first two. None: the first
        device holds the whole model.
      devices: of the mesh; None: all devices.
      quantize: how the kernels of both towers are stored: "int8" or "int4" for memory,
        "int8_matmul" or "fp8_matmul" for speed on devices that have such matmuls;
        "": in the precision (see `nn.quantized`).
      **extra_weights: fields of `ExtraWeights`: `vision`, `language_model`,
        `text_branch`, `lora`, `qformer`, `qformer_tokenizer`, `language_tokenizer`,
        `prompt_template`, `sizes`, `image_size`.

    Returns:
      A `Blip2Retriever` for a stage-1 model, a `Blip2Generator` for a stage-2 model.

    Raises:
      FileNotFoundError: the path does not exist. The subclass HubError says why the
        hub does not provide it.
      ValueError: the path holds no model. The subclasses SourceError, ConfigError and
        WeightsError say what is wrong.
      CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    check_keys(extra_weights, load_options(), (), "load")
    extra = from_options(ExtraWeights, extra_weights, "load")
    source = open_model(path, extra, which)
    model = load_source(source, precision, batch_size, mesh, devices, quantize)
    model.origin = f"{path} ({source.origin})"
    return model


def load_options() -> list[str]:
    """List the names of all options of `load`."""
    options = [
        name
        for name, option in inspect.signature(load).parameters.items()
        if option.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return [*options, *(field.name for field in dataclasses.fields(ExtraWeights))]


def open_model(
    path: str | pathlib.Path,
    extra_weights: ExtraWeights | None = None,
    which: str | int = "best",
) -> ModelSource:
    """Open a model of any origin; its parameters are read on access.

    Args:
      path: see `load`.
      extra_weights: parts that the path lacks.
      which: checkpoint of a run: "best", "last" or a step.

    Raises:
      FileNotFoundError: the path does not exist.
      SourceError: the path holds no model, or an option does not apply to it.
      CheckpointError, ConfigError, WeightsError: a run cannot be read.
    """
    extra = extra_weights or ExtraWeights()
    if str(path) in SHIPPED_MODELS and not pathlib.Path(path).exists():
        _refuse(extra, f"{path} is a model of the package", COMPLETE)
        source = open_shipped_model(str(path))
    else:
        source = _open_path(path, extra, which)
    size = getattr(source.config.vision, "image_size", None)
    if extra.image_size not in (None, size):
        raise SourceError(
            f"the image size of a {source.origin} model cannot be changed; it is {size}"
        )
    if extra.prompt_template and source.stage == 1:
        _refuse(extra, f"{path} is a stage-1 model", ("prompt_template",))
    return dataclasses.replace(
        source,
        qformer_tokenizer=extra.qformer_tokenizer or source.qformer_tokenizer,
        language_tokenizer=extra.language_tokenizer or source.language_tokenizer,
        prompt_template=extra.prompt_template or source.prompt_template,
    )


def _open_path(
    spec: str | pathlib.Path, extra: ExtraWeights, which: str | int
) -> ModelSource:
    """Open the model in a file or folder, or of a name of the hub."""
    path = as_path(spec)
    if not is_run(path):  # of a run on a store, only some files are copied
        path = hub.local_path(spec, *hub.TOKENIZER_FILES, *hub.TOKENIZER_FOLDERS)
    if not path.exists():
        raise FileNotFoundError(
            f"no file or folder {str(spec)!r}; the models of the package are "
            f"{', '.join(SHIPPED_MODELS)}; those of the Hugging Face hub are named "
            "ORG/NAME or hf://ORG/NAME"
        )
    if is_run(path):
        _refuse(extra, f"{spec} is a run", COMPLETE[2:])
        towers = {"vision": extra.vision, "language_model": extra.language_model}
        moved = {name: tower for name, tower in towers.items() if tower}
        return open_run(path, which, moved)
    if native_folder.is_native_folder(path):
        _refuse(extra, f"{spec} is a converted folder", COMPLETE)
        return native_folder.read_folder(path)
    return _open_checkpoint(str(spec), extra)


def _open_checkpoint(path: str, extra: ExtraWeights) -> ModelSource:
    """Open a Hugging Face folder or a LAVIS file; `path` may be a name of the hub."""
    files = CheckpointFiles(path)
    kind = kind_of(files)
    if kind == "minigpt4":
        return _open_minigpt4(files, extra)
    _refuse(extra, f"{path} is {DESCRIPTIONS[kind]}", ("qformer",))
    if kind != "huggingface":
        _refuse(extra, f"{path} is {DESCRIPTIONS[kind]}", ("lora",))
    if kind == "huggingface":
        if extra.lora:
            files = AdaptedFiles(path, extra.lora)
        _refuse(extra, f"{path} is a complete model", ("vision", "language_model"))
        config = _sizes(extra) or huggingface_sizes(files)
    elif kind == "instructblip":
        _refuse(extra, f"{path} is a complete model", COMPLETE[:3])
        config = _sizes(extra) or instructblip_sizes(files)
    elif kind == "lavis":
        config = _sizes(extra) or released_sizes(files)
    elif kind == "blip":
        raise SourceError(
            f"{path} is {DESCRIPTIONS[kind]}, not a BLIP-2: open it with "
            "blip2_jax.load_captioner"
        )
    else:
        raise SourceError(
            f"{path} is {DESCRIPTIONS[kind]}: a part of a model. Name it where a model "
            "is put together (--vision, --language_model, --text_branch; "
            "config.frozen_sources, config.init.from_weights)"
        )
    if extra.image_size is not None:
        config = config_at_size(config, extra.image_size)
    if extra.text_branch and config.language_model is not None:
        config = with_text_branch_sizes(config, extra.text_branch)
    if kind == "instructblip":
        return open_instructblip(files, config)
    parts = _text_branch(config, extra)
    if kind == "huggingface":
        return open_huggingface(files, config, extra=parts)
    return open_lavis(
        files,
        config,
        vision=CheckpointFiles(extra.vision) if extra.vision else None,
        language_model=CheckpointFiles(extra.language_model)
        if extra.language_model
        else None,
        extra=parts,
    )


def _open_minigpt4(file: CheckpointFiles, extra: ExtraWeights) -> ModelSource:
    """Open a MiniGPT-4 file and the parts that it lacks."""
    _refuse(extra, f"{file.name} is {DESCRIPTIONS['minigpt4']}", COMPLETE[2:4])
    for name in MINIGPT4_PARTS:
        if not getattr(extra, name):
            raise SourceError(
                f"{file.name} is {DESCRIPTIONS['minigpt4']} alone: name a LAVIS file "
                "of BLIP-2 (--qformer), EVA-CLIP (--vision) and the folder of a Vicuna "
                "(--language_model)"
            )
    parts = {name: CheckpointFiles(getattr(extra, name)) for name in MINIGPT4_PARTS}
    config = _sizes(extra) or minigpt4_sizes(parts["language_model"])
    if extra.image_size is not None:
        config = config_at_size(config, extra.image_size)
    return open_minigpt4(file, config, **parts)


def _refuse(extra: ExtraWeights, source: str, options: tuple[str, ...]) -> None:
    """Raise a SourceError if an option is set that does not apply to a source."""
    for name in options:
        if getattr(extra, name):
            raise SourceError(f"{source}: the option --{name} does not apply to it")


def _sizes(extra: ExtraWeights) -> Blip2Config | None:
    """Return the sizes that the user named; None if there are none."""
    return named_sizes(extra.sizes) if extra.sizes else None


def named_sizes(name: str) -> Blip2Config:
    """Return the sizes of a preset, or those in a JSON file.

    Args:
      name: name of a preset, or path of a file (see `presets.to_plain`).

    Raises:
      SourceError: there is no such preset or file, or the file holds no sizes.
    """
    if name in presets.PRESETS:
        return presets.PRESETS[name]
    file = as_path(name)
    if not file.is_file():
        raise SourceError(
            f"sizes {name!r} are neither a file nor a preset; the presets are "
            f"{', '.join(presets.PRESETS)}"
        )
    try:
        return presets.from_plain(read_json(file))
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error


def _text_branch(config: Blip2Config, extra: ExtraWeights) -> tuple[Part, ...]:
    if not extra.text_branch:
        return ()
    if config.language_model is None:
        raise SourceError("--text_branch is for stage-2 models; stage 1 has one")
    return (text_branch_part(extra.text_branch, config),)


def load_source(
    source: ModelSource,
    precision: str | None = None,
    batch_size: int = 32,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    quantize: str = "",
) -> Blip2:
    """Read the parameters of an opened model one by one and place them on devices.

    The towers are stored in the dtype of the precision, other parameters in float32.
    Parameters that a Hugging Face stage-1 model lacks are zero; methods that need them
    raise an error.

    Args:
      source: the model.
      precision: see `load`; None: `source.precision`.
      batch_size: rows of the largest compiled program.
      mesh: see `load`.
      devices: see `load`.
      quantize: see `load`.

    Raises:
      ValueError: there is no such precision or quantization, or the mesh has another
        number of devices.
    """
    precision = precision or source.precision
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
        )
    if quantize:
        check_scheme(quantize)
    dtype = jnp.dtype(precision)
    model = build_model(source.config, source.question_in_qformer, dtype)
    params = _place_params(source, dtype, mesh, devices, quantize)
    qformer_tokenizer = _tokenizer(source, language_model=False)
    if isinstance(model, Blip2Stage1):
        return Blip2Retriever(
            model,
            params,
            qformer_tokenizer=qformer_tokenizer,
            prompt=source.config.prompt,
            batch_size=batch_size,
            absent=source.absent,
        )
    return Blip2Generator(
        model,
        params,
        language_tokenizer=_tokenizer(source, language_model=True),
        qformer_tokenizer=qformer_tokenizer,
        prompt=source.config.prompt,
        question_prompt=source.question_prompt,
        prompt_in_qformer=source.prompt_in_qformer,
        batch_size=batch_size,
    )


def _tokenizer(source: ModelSource, *, language_model: bool) -> Any:
    """Load a tokenizer of a model and compare it with its token table."""
    spec = source.language_tokenizer if language_model else source.qformer_tokenizer
    if not spec:
        return None
    tokenizer = load_tokenizer(
        spec, language_model=language_model, prompt_template=source.prompt_template
    )
    if language_model or source.stage == 1 or source.question_in_qformer:
        check_vocabulary(tokenizer, source.config)
    return tokenizer


def _place_params(
    source: ModelSource,
    dtype: jnp.dtype,
    mesh: Mapping[str, int] | None,
    devices: Sequence[jax.Device] | None,
    quantize: str,
) -> Tree:
    """Read and place all parameters of a model; see `load_source`."""
    axes: dict[str, Any] = dict(mesh or {})
    device_mesh = sharding.make_mesh(**axes, devices=devices) if axes else None
    shapes = expected_shapes(source.config, source.question_in_qformer)
    schemes = dict.fromkeys(TOWERS, quantize)
    params: dict[str, Any] = {}
    # In the order of the source: parameters that one source array holds are converted
    # together (`ConvertedArrays`).
    for path in source.arrays:
        if path not in shapes:
            continue
        shape = shapes[path].shape
        stored = dtype if path.startswith(TOWERS) else jnp.dtype(jnp.float32)
        read = part_reader(source.arrays, path)
        if device_mesh is None:
            params[path] = jax.device_put(read(...).astype(stored))
        else:
            spec = sharding.parameter_spec(path, shape, device_mesh)
            params[path] = sharding.make_sharded_array(
                shape, NamedSharding(device_mesh, spec), read, stored
            )
        params[path] = quantize_parameter(path, params[path], schemes)
    for path in shapes.keys() - params.keys():
        params[path] = jnp.zeros(shapes[path].shape)
    return unflatten(params)
