"""The Q-Former's start: a pre-trained BERT, as the original initialises it.

Self-attention, text feed-forward, embeddings and language-model head come from BERT;
the query feed-forward starts as a copy of the text's. Cross-attention and queries stay
as freshly initialised, and so does the one word that BERT does not have, [DEC]. BERT's
token-type embeddings, pooler and next-sentence head have no place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from blip2_jax.convert.tables import lavis
from blip2_jax.convert.tables.name_table import Array, Arrays, Rule, Transform
from blip2_jax.models.presets import QFormerConfig

LEFTOVERS = (
    r"(bert\.)?embeddings\.(token_type_embeddings\.weight|position_ids)",
    r"(bert\.)?pooler\..*",
    r"cls\.seq_relationship\..*",
)
OLD_NORMS = (
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
)
NEW_WORD_STD = 0.02  # BERT's own


def bert_rules(
    config: QFormerConfig, names: Iterable[str], *, queries: bool = True
) -> list[Rule]:
    """The table of a BERT as a Q-Former's start, to be read only.

    Args:
      config: sizes; BERT's, but for the vocabulary, which has [DEC] more.
      names: of the source's arrays: `BertForMaskedLM`, `BertForPreTraining` (norms
        under their older names too).
      queries: also what a pass of queries uses; False: the text branch alone.
    """
    rules = list(lavis.qformer_text_rules(config, ""))
    if queries:
        copies = [_for_queries(r) for r in rules if "/text_mlp" in r.targets[0]]
        own = [r for r in lavis.qformer_query_rules(config, "bert.") if _is_berts(r)]
        rules += copies + own
    rules = [_with_new_word(rule, config) for rule in rules]
    old = any(name.endswith(".gamma") for name in names)
    return [_with_old_norms(rule) for rule in rules] if old else rules


def _is_berts(rule: Rule) -> bool:
    new = ("/cross_attention", "/query_mlp")
    return not any(part in rule.targets[0] for part in new)


def _for_queries(rule: Rule) -> Rule:
    target = rule.targets[0].replace("/text_mlp", "/query_mlp")
    return dataclasses.replace(rule, target=target)


def _with_new_word(rule: Rule, config: QFormerConfig) -> Rule:
    """The word table and the head's bias have a row more than BERT's."""
    std = {"qformer/embeddings/word": NEW_WORD_STD, "qformer/head/bias": 0.0}
    if rule.targets[0] not in std:
        return rule
    return dataclasses.replace(
        rule, transform=new_rows(config.vocab_size, std[rule.targets[0]])
    )


def new_rows(count: int, std: float) -> Transform:
    """Appends rows up to `count`: normal, the same at every call; the way back cuts."""

    def append(arrays: Arrays) -> Arrays:
        (known,) = arrays
        shape = (count - len(known), *known.shape[1:])
        rows: Array = np.random.default_rng(0).normal(size=shape) * std
        concat = known.__array_namespace__().concat
        return (concat([known, rows.astype(known.dtype)]),)

    def cut(arrays: Arrays) -> Arrays:
        (every,) = arrays
        return (every[:-1],)

    return Transform(append, cut)


def _with_old_norms(rule: Rule) -> Rule:
    source = rule.sources[0]
    for new, old in OLD_NORMS:
        source = source.replace(new, old)
    return dataclasses.replace(rule, source=source)
