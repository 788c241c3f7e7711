"""blip2-jax train --config shapes_tower_t5 --workdir runs/tower_t5

Train the encoder-decoder language model of the shapes world, as `shapes_tower_opt` its
decoder-only one. The encoder reads a description, then questions and beginnings of
captions, each with a blank after it; the decoder fills in the blanks, as in the
pre-training of T5.

The shipped weights were trained by four such runs, each from the one before
(`init.from_weights`): the last three with seeds 1, 2 and 3, a learning rate of 3e-3 and
75 % questions (`data.question_share`). The argument `small` selects a model of a
quarter of the size, trained for 5,000 steps with 70 % questions.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_tower_opt
from blip2_jax.models.presets import preset
from blip2_jax.models.sizes import T5Config


def get_config(size: str = "") -> ConfigDict:
    """Build the configuration; `size` is "" or "small"."""
    config = shapes_tower_opt.get_config(size, "t5").unlock()
    if size:
        config.steps, config.data.question_share = 5000, 0.7
    sizes = preset(config.model.preset).language_model
    assert isinstance(sizes, T5Config)
    config.optimizer.rate_factors = (
        # T5 does not scale attention logits by the head width.
        (".*/query/kernel", sizes.head_width**-0.5),
        # Only these few numbers encode relative positions. At the common rate they
        # stay too small for a head to attend to the previous word.
        (".*/relative_bias", 20.0),
    )
    config.data.texts_per_document = 6
    config.data.max_text_length = 72
    config.data.max_target_length = 40
    return config.lock()
