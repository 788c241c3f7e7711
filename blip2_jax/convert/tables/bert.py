"""Name table of a BERT checkpoint, from which the Q-Former starts in stage 1.

As in the original, BERT provides self-attention, the text feed-forward, embeddings and
the language-model head; the query feed-forward starts as a copy of the text's. The
cross-attention and the queries keep their fresh values. The embedding of [DEC], which
BERT's vocabulary lacks, is drawn here. BERT's token-type embeddings, pooler and
next-sentence head are not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from blip2_jax.convert.tables import lavis
from blip2_jax.convert.tables.name_table import Array, Arrays, Rule, Transform
from blip2_jax.models.sizes import QFormerConfig

HEAD = "cls.predictions."  # of the head of masked language modelling
PREFIX = "bert."  # of all arrays but the heads; `BertModel` has neither
# Patterns of BERT's arrays that have no place in the Q-Former.
LEFTOVERS = (
    r"(bert\.)?embeddings\.(token_type_embeddings\.weight|position_ids)",
    r"(bert\.)?pooler\..*",
    r"cls\.seq_relationship\..*",
    r"(classifier|qa_outputs)\..*",
)
# Suffixes of norms: here and in `BertForPreTraining`'s older checkpoints.
OLD_NORMS = (
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
)
NEW_WORD_STD = 0.02  # BERT's initial standard deviation


def bert_rules(
    config: QFormerConfig, names: Iterable[str], *, queries: bool = True
) -> list[Rule]:
    """Return the table that reads a BERT as a Q-Former; it cannot write one.

    Args:
      config: sizes; those of the BERT, but for the vocabulary, which has [DEC] too.
      names: of the checkpoint's arrays, from any class of BERT (with older names of the
        norms too). Without a language-modelling head, as in `BertModel`, there are no
        rules for the head.
      queries: include what the query pass uses; False reads the text branch alone.
    """
    names = list(names)
    rules = list(lavis.qformer_text_rules(config, ""))
    if queries:
        copies = [_as_query_mlp(rule) for rule in rules if _is_text_mlp(rule)]
        shared = [
            rule
            for rule in lavis.qformer_query_rules(config, "bert.")
            if not _is_new(rule)
        ]
        rules += copies + shared
    if not any(name.startswith(HEAD) for name in names):
        rules = [dataclasses.replace(r, aliases=()) for r in rules if not _is_head(r)]
    rules = [_with_new_word(rule, config) for rule in rules]
    if not any(name.startswith(PREFIX) for name in names):
        rules = [_without_prefix(rule) for rule in rules]
    old = any(name.endswith(".gamma") for name in names)
    return [_with_old_norms(rule) for rule in rules] if old else rules


def _is_head(rule: Rule) -> bool:
    return rule.targets[0].startswith("qformer/head/")


def _without_prefix(rule: Rule) -> Rule:
    return dataclasses.replace(rule, source=rule.sources[0].removeprefix(PREFIX))


def _is_text_mlp(rule: Rule) -> bool:
    return "/text_mlp" in rule.targets[0]


def _is_new(rule: Rule) -> bool:
    """Return True for parameters that BERT lacks or that are copied from the text's."""
    return any(part in rule.targets[0] for part in ("/cross_attention", "/query_mlp"))


def _as_query_mlp(rule: Rule) -> Rule:
    target = rule.targets[0].replace("/text_mlp", "/query_mlp")
    return dataclasses.replace(rule, target=target)


def _with_new_word(rule: Rule, config: QFormerConfig) -> Rule:
    """Append the row of [DEC] to the word table and to the head's bias."""
    std = {"qformer/embeddings/word": NEW_WORD_STD, "qformer/head/bias": 0.0}
    if rule.targets[0] not in std:
        return rule
    return dataclasses.replace(
        rule, transform=new_rows(config.vocab_size, std[rule.targets[0]])
    )


def new_rows(count: int, std: float) -> Transform:
    """Return a transform that appends rows until there are `count`.

    The rows are normal with standard deviation `std`, the same at every call. The
    inverse removes the last row.
    """

    def append(arrays: Arrays) -> Arrays:
        (table,) = arrays
        shape = (count - len(table), *table.shape[1:])
        rows: Array = np.random.default_rng(0).normal(size=shape) * std
        concat = table.__array_namespace__().concat
        return (concat([table, rows.astype(table.dtype)]),)

    def remove(arrays: Arrays) -> Arrays:
        (table,) = arrays
        return (table[:-1],)

    return Transform(append, remove)


def _with_old_norms(rule: Rule) -> Rule:
    source = rule.sources[0]
    for new, old in OLD_NORMS:
        source = source.replace(new, old)
    return dataclasses.replace(rule, source=source)
