"""blip2-jax train --config instruct_vicuna7b --workdir runs/instruct_vicuna7b

Instruction tuning as of InstructBLIP with Vicuna-7B 1.1, from the stage-2 run that
`--config.init.from_run` names (`stage2_language_model:weights/vicuna-7b-v1.1`).
`instruct_vicuna7b:vicuna13b` selects Vicuna-13B. Texts begin with the end token, as in
the authors' code; all else but the batch size is as in `instruct_flant5xl`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common, instruct_flant5xl
from blip2_jax.data.text.tokenizer_files import LAVIS_PREFIX

BATCH_SIZES = {"vicuna7b": 128, "vicuna13b": 64}  # section 2.6 of the paper


def get_config(language: str = "vicuna7b") -> ConfigDict:
    """Build the configuration; `language` is "vicuna7b" or "vicuna13b"."""
    (language,) = common.parse_variant(language, tuple(BATCH_SIZES))
    config = instruct_flant5xl.instruction_tuning(language, BATCH_SIZES[language])
    weights = common.LANGUAGE_MODELS[language]
    config.data.tokenizer.language_model = LAVIS_PREFIX + weights
    return config.lock()
