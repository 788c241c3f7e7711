"""blip2-jax train --config stage2_language_model:FOLDER --workdir runs/stage2

Stage 2 with any language model that this package can read: FOLDER is a Hugging Face
folder or hub name of an OPT, T5, mT5, Llama, Mistral, Qwen2, Qwen3, Granite or Phi-3.
Its sizes come from its `config.json`, first and last tokens of a text from its
tokenizer. All else is as in `stage2_opt2_7b`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import stage2_opt2_7b
from blip2_jax.convert.language_folder import language_options
from blip2_jax.training.train_config import ConfigError


def get_config(folder: str = "") -> ConfigDict:
    """Build the configuration; `folder` is a path or a name of the hub."""
    if not folder:
        raise ConfigError(
            "stage2_language_model needs the folder or hub name of a language model: "
            "--config stage2_language_model:FOLDER"
        )
    config = stage2_opt2_7b.get_config().unlock()
    config.model.overrides = ConfigDict({"language_model": language_options(folder)})
    config.frozen_sources.language_model = folder
    config.data.tokenizer.language_model = folder
    return config.lock()
