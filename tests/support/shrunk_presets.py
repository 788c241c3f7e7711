"""Experiments with a tiny model on the shapes world."""

import dataclasses

from ml_collections import ConfigDict

from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models import presets
from blip2_jax.models.sizes import ViTConfig
from blip2_jax.training.tasks import model_config

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}
PATCHED = {"image_size": 28, "patch_size": 14, "depth": 1}
ROWS = 16


def shrunk(config: ConfigDict) -> ConfigDict:
    """Return the experiment with the same objective and optimizer, but tiny sizes."""
    sizes = model_config(config.model)
    config = config.copy_and_resolve_references().unlock()
    kinds = {kind: name for name, kind in presets.PARTS.items()}
    family = kinds.get(type(sizes.language_model), "")
    words = lambda spec: (
        load_tokenizer(spec, language_model=not spec.endswith("bert")).vocab_size
    )
    vision = {"kind": "features", "num_tokens": 4, "width": 16}
    if isinstance(sizes.vision, ViTConfig):
        vision = {"kind": "vit", **dataclasses.asdict(sizes.vision), **SMALL, **PATCHED}
    qformer = SMALL | {"vocab_size": words("shapes:bert"), "projection_dim": 8}
    parts = {"vision": vision, "qformer": qformer | {"num_queries": 3}}
    parts["qformer"] |= {"cross_attention_every": sizes.qformer.cross_attention_every}
    if family:
        tokenizer = "shapes:t5" if family == "t5" else "shapes:opt"
        language = dataclasses.asdict(sizes.language_model) | SMALL
        language |= {"kind": family, "vocab_size": words(tokenizer)}
        if family == "opt":
            language["embed_width"] = None
        if "kv_heads" in language:
            heads = SMALL["heads"]
            language |= {"kv_heads": heads, "head_width": SMALL["width"] // heads}
        parts["language_model"] = language
        config.data.tokenizer.language_model = tokenizer
    config.model.overrides = ConfigDict(parts)
    config.data.tokenizer.qformer = "shapes:bert"
    images = config.task != "language_model"
    config.data.train = (
        {
            "kind": "shapes",
            "split": "train",
            "size": 32,
            "texts": "both",
            "images": images,
        },
    )
    if config.model.question_in_qformer:
        config.data.question_share = 1.0
    config.data.image.size, config.data.workers = 28, 0
    config.batch_size = ROWS
    config.init.from_run, config.init.from_weights = "", ()
    config.frozen_sources.vision = config.frozen_sources.language_model = "random"
    return config.lock()
