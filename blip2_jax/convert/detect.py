"""Detection of the kind of weights in a checkpoint from the names of its arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.language_families.registry import FAMILIES

# Patterns of the beginning of a name (`re.match`). The first kind with a match holds:
# a pattern tells its kind from the kinds below it.
KINDS = {
    "lavis": r"Qformer\.",
    "minigpt4": r"llama_proj\.",
    "instructblip": r"qformer\.embeddings\.word_embeddings\.",
    "huggingface": r"qformer\.encoder\.layer\.",
    "blip": r"text_decoder\.bert\.encoder\.layer\.",
    "blip2_jax": r"[a-z_]+/",
    "bert": r"(bert\.)?encoder\.layer\.\d+\.attention\.self\.query\.",
    "eva": r"(visual\.)?blocks\.0\.attn\.q_bias",
    "clip": r"(visual\.)?transformer\.resblocks\.0\.attn\.in_proj_weight",
    # CLIP has no bias there.
    "siglip": r"(vision_model\.)?embeddings\.patch_embedding\.bias",
    "dinov2": r"(dinov2\w*\.)?encoder\.layer\.0\.layer_scale1\.lambda1",
    # transformers 5 saves `CLIPVisionModel` without the prefix.
    "clip_huggingface": r"vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.|"
    r"pre_layrnorm\.",
    **{name: family.pattern for name, family in FAMILIES.items()},
}
DESCRIPTIONS = {
    "lavis": "LAVIS's BLIP-2",
    "minigpt4": "MiniGPT-4's projection",
    "instructblip": "Hugging Face's InstructBLIP",
    "huggingface": "Hugging Face's BLIP-2",
    "blip": "BLIP's captioner",
    "blip2_jax": "this package's own",
    "bert": "BERT",
    "eva": "EVA-CLIP's image encoder",
    "clip": "OpenAI's CLIP",
    "siglip": "Hugging Face's SigLIP",
    "dinov2": "Hugging Face's DINOv2",
    "clip_huggingface": "Hugging Face's CLIP",
    **{name: family.title for name, family in FAMILIES.items()},
}
# Kinds of image encoders, with the `ViTConfig.family`.
VISION = {
    "eva": "EVA-CLIP",
    "clip": "CLIP",
    "clip_huggingface": "CLIP",
    "siglip": "SigLIP",
    "dinov2": "DINOv2",
}
DECLARED = ("siglip", "dinov2")  # those whose folders declare their sizes
LANGUAGE = tuple(FAMILIES)
# `model_type` of models like BERT, with the prefix of their arrays. They have other
# positions, tokens or blocks, and the Q-Former cannot start from them.
LIKE_BERT = {
    "albert": "albert",
    "camembert": "roberta",
    "deberta": "deberta",
    "deberta-v2": "deberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "mpnet": "mpnet",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}


def kind_of(source: CheckpointFiles) -> str:
    """Return the kind of a checkpoint, a key of `KINDS`.

    Raises:
      SourceError: no kind fits; the message gives some of the names.
    """
    _refuse_like_bert(source)
    for kind, pattern in KINDS.items():
        if any(re.match(pattern, name) for name in source):
            return kind
    model_type = source.config.get("model_type")
    said = f" its config.json says {model_type!r}," if model_type else ""
    raise SourceError(
        f"{source.name} is none of: {', '.join(DESCRIPTIONS.values())};{said} it holds "
        f"{len(source)} arrays such as {', '.join(list(source)[:3])}"
    )


def _refuse_like_bert(source: CheckpointFiles) -> None:
    """Refuse models whose arrays may have the names of BERT's.

    Raises:
      SourceError: by the `config.json`, or by the names of arrays without one.
    """
    model_type = source.config.get("model_type")
    prefixes = tuple(f"{prefix}." for prefix in LIKE_BERT.values())
    if not source.config and any(name.startswith(prefixes) for name in source):
        name = next(name for name in source if name.startswith(prefixes))
        model_type = name.partition(".")[0]
    if model_type in LIKE_BERT:
        raise SourceError(
            f"{source.name} is a {model_type!r}, which is like BERT, but no BERT: the "
            "Q-Former starts from a BERT in any language (model_type 'bert'), such as "
            "bert-base-uncased or bert-base-multilingual-cased"
        )


def expect_kind(source: CheckpointFiles, kinds: Iterable[str], purpose: str) -> str:
    """Return the kind of a checkpoint, which must be one of `kinds`.

    Args:
      source: the checkpoint.
      kinds: allowed kinds.
      purpose: what needs the checkpoint, for the message.

    Raises:
      SourceError: the checkpoint is of another kind.
    """
    kind, kinds = kind_of(source), tuple(kinds)
    if kind not in kinds:
        expected = " or ".join(DESCRIPTIONS[name] for name in kinds)
        raise SourceError(
            f"{source.name} is {DESCRIPTIONS[kind]}; {purpose} needs {expected}"
        )
    return kind
