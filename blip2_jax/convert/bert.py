"""The Q-Former's start: a pre-trained BERT, as the original initialises it.

Self-attention, text feed-forward, embeddings and language-model head come from BERT;
the query feed-forward starts as a copy of the text's; cross-attention, queries and
the words that BERT does not have ([DEC]) stay as freshly initialised. BERT's
token-type embeddings, pooler and next-sentence head have no place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import PyTree

from blip2_jax.convert import lavis, names
from blip2_jax.convert.names import Array
from blip2_jax.presets import QFormerConfig

NEW_WORDS = ("qformer/embeddings/word", "qformer/head/bias")


def start_from_bert(
    params: PyTree, source: Mapping[str, Array], config: QFormerConfig
) -> PyTree:
    """Replaces what BERT knows in freshly initialised parameters.

    Args:
      params: of a stage-1 model, from `init_params`.
      source: arrays of a `BertForMaskedLM` (bert-base-uncased) by name; the older
        names of its norms (gamma, beta) are understood.
      config: sizes; BERT's, but for the vocabulary, which may be larger.

    Raises:
      ValueError: BERT lacks an array, or one has another shape.
    """
    source = {_modern(name): array for name, array in source.items()}
    table = [
        *lavis.qformer_query_rules(config, "bert."),
        *lavis.qformer_text_rules(config, ""),
    ]
    converted = names.to_ours(source, table)
    lacking = [p for p in converted.missing if not _is_new(p)]
    if lacking:
        raise ValueError(f"this BERT lacks arrays for: {', '.join(lacking[:10])}")
    taken, fresh = names.flatten(converted.params), names.flatten(params)
    for path in NEW_WORDS:
        taken[path] = np.concatenate([taken[path], fresh[path][len(taken[path]) :]])
    taken |= {
        path.replace("/text_mlp", "/query_mlp"): array
        for path, array in taken.items()
        if "/text_mlp" in path
    }
    for path, array in taken.items():
        if array.shape != fresh[path].shape:
            raise ValueError(
                f"{path}: BERT has shape {array.shape}, the model {fresh[path].shape}"
            )
    return names.nest(fresh | taken)


def _is_new(path: str) -> bool:
    return "/cross_attention" in path or "/query_mlp" in path


def _modern(name: str) -> str:
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for before, after in old.items():
        name = name.replace(before, after)
    return name
