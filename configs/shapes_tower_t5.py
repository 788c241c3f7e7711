"""blip2-jax train --config shapes_tower_t5 --workdir runs/tower_t5

As `shapes_tower_opt.py`, an encoder-decoder: the encoder reads a description, then
questions and first words of captions with a blank behind each; the decoder fills the
blanks in, as T5 does in its pre-training.

The weights that ship with the package had the run four times, each from what the one
before left (`init.from_weights`): the last three with seeds 1, 2 and 3, a rate of 3e-3
and 75 % questions (`data.question_share`). `shapes_tower_t5.py:small` is the model of a
quarter of the size, in one run of 5,000 steps with 70 % questions.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_tower_opt
from blip2_jax.models.presets import T5Config, preset


def get_config(size: str = "") -> ConfigDict:
    """The run's configuration; `size` is "" or "small"."""
    config = shapes_tower_opt.get_config(size, "t5").unlock()
    if size:
        config.steps, config.data.question_share = 5000, 0.7
    sizes = preset(config.model.preset).language_model
    assert isinstance(sizes, T5Config)
    config.optimizer.rate_factors = (
        # Their products are not scaled by head width.
        (".*/query/kernel", sizes.head_width**-0.5),
        # Where to look, relative to oneself, is in these few numbers alone. At the
        # common rate they stay too small for a head to read the word before.
        (".*/relative_bias", 20.0),
    )
    config.data.texts_per_document = 6
    config.data.max_text_length = 72
    config.data.max_target_length = 40
    return config.lock()
