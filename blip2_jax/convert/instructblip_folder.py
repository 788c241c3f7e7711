"""Hugging Face's InstructBLIP folders: their name table, and how to open them.

An `InstructBlipForConditionalGeneration` (Dai et al. 2023) is a stage-2 model whose
Q-Former reads the instruction too. Its arrays have the names of BLIP-2's, but for the
Q-Former's embeddings. The folder has two tokenizers: that of the language model, and
the Q-Former's in `qformer_tokenizer/`.
"""

from __future__ import annotations

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part
from blip2_jax.convert.declared_sizes import (
    INSTRUCTBLIP_SIZES_IN_ARRAYS,
    check_declared_sizes,
)
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.folder_tokenizer import own_tokenizer, tokenizer_beside
from blip2_jax.convert.huggingface_config import (
    blip2_sizes,
    check_settings,
    expect_model_type,
    their_config,
)
from blip2_jax.convert.huggingface_folder import (
    DEFAULT_IMAGE_SIZE,
    RENAMES,
    folder_part,
    renamed_rules,
)
from blip2_jax.convert.huggingface_processor import check_image_processor
from blip2_jax.convert.model_source import ModelSource, expected_shapes
from blip2_jax.convert.tables.instructblip_settings import SECTIONS
from blip2_jax.convert.tables.lavis import stage2_rules
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.models.presets import Blip2Config

QFORMER_TOKENIZER = "qformer_tokenizer"  # sub-folder
# The names in which InstructBLIP differs from BLIP-2.
_OTHER_NAMES = {
    "Qformer.bert.embeddings.LayerNorm.": "qformer.embeddings.layernorm.",
    "Qformer.bert.embeddings.": "qformer.embeddings.",
}
INSTRUCTBLIP_RENAMES = tuple(
    (lavis, _OTHER_NAMES.get(lavis, huggingface)) for lavis, huggingface in RENAMES
)


def instructblip_sizes(source: CheckpointFiles) -> Blip2Config:
    """Read the sizes from the `config.json` of an InstructBLIP folder.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    declared, file = source.config, source.path / "config.json"
    expect_model_type(source, "instructblip", "Hugging Face's InstructBLIP")
    check_settings(declared, file, True, SECTIONS)
    theirs = their_config(declared, file, "InstructBlipConfig")
    check_declared_sizes(theirs, source, True, INSTRUCTBLIP_SIZES_IN_ARRAYS)
    return blip2_sizes(theirs, source)


def open_instructblip(
    source: CheckpointFiles, config: Blip2Config | None = None
) -> ModelSource:
    """Open an InstructBLIP folder as a model, its tokenizers included.

    Args:
      source: the files of the folder.
      config: sizes; None reads its `config.json`.

    Raises:
      SourceError: weights and sizes do not fit, or this package has no such model or
        no such preprocessing of images.
    """
    config = config or instructblip_sizes(source)
    check_image_processor(source, DEFAULT_IMAGE_SIZE)
    arrays = ConvertedArrays([instructblip_part(source, config)])
    arrays.check(expected_shapes(config, question_in_qformer=True))
    return ModelSource(
        config,
        arrays,
        "instructblip",
        question_in_qformer=True,
        prompt_in_qformer=True,
        precision=arrays.precision,
        qformer_tokenizer=tokenizer_beside(source, QFORMER_TOKENIZER),
        language_tokenizer=own_tokenizer(source),
    )


def instructblip_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """Return the folder with its table; positions fit the image size of `config`."""
    return folder_part(source, config, instructblip_rules(config))


def instructblip_rules(config: Blip2Config) -> list[Rule]:
    """Return the table of a complete InstructBLIP.

    Raises:
      ValueError: transformers has no such image encoder, or there is no language model.
    """
    lavis_rules = stage2_rules(config, reads_text=True)
    return renamed_rules(config, lavis_rules, INSTRUCTBLIP_RENAMES)
