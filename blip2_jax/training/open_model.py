"""Open a model of any origin: a run, a converted folder, Hugging Face's, LAVIS's."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from blip2_jax.convert import native_folder, weights
from blip2_jax.convert.detect import DESCRIPTIONS, kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_folder import open_huggingface
from blip2_jax.convert.lavis_file import open_lavis
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.sizes import at_image_size, huggingface_sizes, released_sizes
from blip2_jax.models import presets
from blip2_jax.models.presets import Blip2Config


@dataclasses.dataclass(frozen=True)
class ExtraWeights:
    """What a file of weights does not say or hold by itself.

    Attributes:
      vision: file or folder of the image encoder (LAVIS; a run whose source moved).
      language_model: of the language model, likewise.
      text_branch: a stage-1 file or a BERT, for a stage-2 model that lacks the
        Q-Former's text branch.
      qformer_tokenizer, language_tokenizer: directories, in place of the origin's.
      sizes: name of a preset, or a JSON file of sizes (`presets.to_plain`), where
        the file has those of no released model.
      image_size: other than the origin's; positions are interpolated.
    """

    vision: str = ""
    language_model: str = ""
    text_branch: str = ""
    qformer_tokenizer: str = ""
    language_tokenizer: str = ""
    sizes: str = ""
    image_size: int | None = None


def open_model(
    path: str | pathlib.Path,
    beside: ExtraWeights | None = None,
    which: str | int = "best",
) -> ModelSource:
    """A model whose arrays are read when asked for.

    Args:
      path: a run's directory, a folder that `launch/convert.py` wrote, a Hugging
        Face folder, or a LAVIS file.
      beside: what the path does not say.
      which: checkpoint of a run: "best", "last" or a step.

    Raises:
      FileNotFoundError: nothing is there.
      SourceError: something else is there, or an option does not go with it.
      CheckpointError, ConfigError, WeightsError: a run that cannot be read.
    """
    path, beside = pathlib.Path(path), beside or ExtraWeights()
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {str(path)!r}")
    if is_run(path):
        from blip2_jax.training.runs import open_trained  # not needed for the others

        _refuse(beside, f"{path}, a run", ("text_branch", "sizes"))
        towers = {"vision": beside.vision, "language_model": beside.language_model}
        moved = {name: spec for name, spec in towers.items() if spec}
        return _finish(open_trained(path, which, moved), beside)
    if native_folder.is_folder(path):
        _refuse(beside, f"{path}, a converted folder", tuple(_OWN))
        return _finish(native_folder.read_folder(path), beside)
    source = CheckpointFiles(path)
    kind = kind_of(source)
    if kind == "huggingface":
        _refuse(beside, f"{path}, a complete model", ("vision", "language_model"))
        config = _sized(_given(beside) or huggingface_sizes(source), beside)
        extra = _text_branch(config, beside)
        return _finish(open_huggingface(source, config, extra=extra), beside)
    if kind != "lavis":
        raise SourceError(
            f"{path} is {DESCRIPTIONS[kind]}: a part of a model, to be named where a "
            "model is put together (--vision, --language_model, --text_branch; "
            "config.frozen_sources, config.init.from_weights)"
        )
    config = _sized(_given(beside) or released_sizes(source), beside)
    model = open_lavis(
        source,
        config,
        vision=CheckpointFiles(beside.vision) if beside.vision else None,
        language_model=CheckpointFiles(beside.language_model)
        if beside.language_model
        else None,
        extra=_text_branch(config, beside),
    )
    return _finish(model, beside)


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a training run of this package lives there."""
    return pathlib.Path(path, "checkpoints").is_dir()


_OWN = ("vision", "language_model", "text_branch", "sizes")  # says it all itself


def _refuse(beside: ExtraWeights, what: str, options: tuple[str, ...]) -> None:
    for name in options:
        if getattr(beside, name):
            raise SourceError(f"{what}, needs no --{name}")


def _given(beside: ExtraWeights) -> Blip2Config | None:
    """The sizes that were named, if any."""
    if not beside.sizes:
        return None
    if beside.sizes in presets.PRESETS:
        return presets.PRESETS[beside.sizes]
    file = pathlib.Path(beside.sizes)
    if not file.is_file():
        raise SourceError(
            f"sizes {beside.sizes!r} are neither a file nor a preset; there are "
            f"{', '.join(presets.PRESETS)}"
        )
    try:
        return presets.from_plain(json.loads(file.read_text()))
    except (json.JSONDecodeError, ValueError) as error:
        raise SourceError(f"{file}: {error}") from error


def _sized(config: Blip2Config, beside: ExtraWeights) -> Blip2Config:
    if beside.image_size is None:
        return config
    return at_image_size(config, beside.image_size)


def _text_branch(config: Blip2Config, beside: ExtraWeights) -> tuple[weights.Part, ...]:
    if not beside.text_branch:
        return ()
    if config.language_model is None:
        raise SourceError("--text_branch is for stage-2 models; stage 1 has one")
    return (weights.text_branch_part(beside.text_branch, config),)


def _finish(model: ModelSource, beside: ExtraWeights) -> ModelSource:
    """With the tokenizers that were named."""
    size = getattr(model.config.vision, "image_size", None)
    if beside.image_size not in (None, size):
        raise SourceError(f"a {model.origin} model keeps its image size ({size})")
    return dataclasses.replace(
        model,
        qformer_tokenizer=beside.qformer_tokenizer or model.qformer_tokenizer,
        language_tokenizer=beside.language_tokenizer or model.language_tokenizer,
    )
