"""What this package makes of every setting of InstructBLIP.

See `huggingface_settings`, which has the rules and the tables of the language models.
"""

from __future__ import annotations

import dataclasses

from blip2_jax.convert.tables import huggingface_settings as settings
from blip2_jax.convert.tables.huggingface_settings import Settings

INSTRUCTBLIP = dataclasses.replace(
    settings.BLIP2,
    used=tuple(s for s in settings.BLIP2.used if s != "image_text_hidden_size"),
)
VISION = dataclasses.replace(
    settings.VISION,
    fixed={**settings.VISION.fixed, "model_type": ("instructblip_vision_model",)},
)
QFORMER = dataclasses.replace(
    settings.QFORMER,
    fixed={**settings.QFORMER.fixed, "model_type": ("instructblip_qformer",)},
    without_effect={
        name: reason
        for name, reason in settings.QFORMER.without_effect.items()
        if name != "use_qformer_text_input"
    },
)
SECTIONS: dict[str, Settings] = {
    "": INSTRUCTBLIP,
    "vision_config": VISION,
    "qformer_config": QFORMER,
}
# Title: table, as docs/conversion.md lists them.
TABLES = {
    "`InstructBlipConfig`": INSTRUCTBLIP,
    "`InstructBlipVisionConfig`": VISION,
    "`InstructBlipQFormerConfig`": QFORMER,
}
