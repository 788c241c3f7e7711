"""Files of MiniGPT-4 (Zhu et al. 2023), which hold a projection alone.

MiniGPT-4 is a BLIP-2 of stage 2 with Vicuna. Image encoder, Q-Former and language model
are frozen and come from files of their own; the Q-Former is that of a released BLIP-2.
The image stands within the prompt.
"""

from __future__ import annotations

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part, part_at_size
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.folder_tokenizer import own_tokenizer, with_tokens_of
from blip2_jax.convert.language_folder import declared_sizes
from blip2_jax.convert.model_source import TOWERS, ModelSource, expected_shapes
from blip2_jax.convert.tables.lavis import shared_rules
from blip2_jax.convert.tables.name_table import linear
from blip2_jax.convert.towers import language_part, vision_part
from blip2_jax.data.text.prompts import MINIGPT4_PROMPT
from blip2_jax.models.presets import EVA_VIT_G, QFORMER_BASE, Blip2Config


def minigpt4_sizes(language_model: CheckpointFiles) -> Blip2Config:
    """Return the released sizes with those of a folder of a language model.

    Raises:
      SourceError: the folder declares something that this package does not have.
    """
    sizes = with_tokens_of(declared_sizes(language_model), language_model)
    return Blip2Config(EVA_VIT_G, QFORMER_BASE, sizes)


def minigpt4_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """Return a file of MiniGPT-4 with its table, the same for models of all sizes."""
    return Part(source, linear("llama_proj", "language_projection"))


def open_minigpt4(
    source: CheckpointFiles,
    config: Blip2Config,
    *,
    qformer: CheckpointFiles,
    vision: CheckpointFiles,
    language_model: CheckpointFiles,
) -> ModelSource:
    """Open a file of MiniGPT-4 and the frozen parts as a model.

    Args:
      source: the file.
      config: sizes.
      qformer: a LAVIS file of BLIP-2, for the Q-Former and the norm before it.
      vision: EVA-CLIP.
      language_model: folder of a Vicuna, with its tokenizer.

    Raises:
      SourceError: parameters of the model are missing, or do not fit the sizes.
    """
    assert config.language_model is not None
    anything = (".*",)  # projection, heads and text branch of the BLIP-2 are not used
    arrays = ConvertedArrays(
        [
            minigpt4_part(source, config),
            part_at_size(qformer, shared_rules(config), config.vision, anything),
            vision_part(vision, config.vision),
            language_part(language_model, config.language_model),
        ]
    )
    arrays.check(expected_shapes(config))
    return ModelSource(
        config,
        arrays,
        "minigpt4",
        language_tokenizer=own_tokenizer(language_model),
        question_prompt=MINIGPT4_PROMPT,
        elsewhere=TOWERS,
        precision=arrays.precision,
    )
