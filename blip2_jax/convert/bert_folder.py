"""A BERT in any language as the start of a Q-Former: its sizes and its arrays.

Folders may hold any class of BERT (`BertModel`, `BertForMaskedLM`,
`BertForPreTraining`, ...). The sizes come from `config.json`, of which every setting is
used, refused by name or without effect.
"""

from __future__ import annotations

from blip2_jax.convert.converted_arrays import Part
from blip2_jax.convert.declared_sizes import compare_sizes
from blip2_jax.convert.detect import expect_kind
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_config import check_tables, their_config
from blip2_jax.convert.tables import bert
from blip2_jax.convert.tables.bert_settings import BERT
from blip2_jax.models.sizes import QFormerConfig

PURPOSE = "the start of a Q-Former"
# Sizes that a BERT determines.
SIZES = (
    "width",
    "depth",
    "heads",
    "mlp_dim",
    "vocab_size",
    "max_positions",
    "layer_norm_eps",
    "dropout",
    "activation",
)
# See `compare_sizes`; without the prefix.
_ARRAYS = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
_LAYERS = {"num_hidden_layers": r"(?:bert\.)?encoder\.layer\.(\d+)\."}
# Those that no array shows, and that change what the blocks compute.
_INVISIBLE = ("heads", "layer_norm_eps", "activation")


def bert_sizes(source: CheckpointFiles) -> QFormerConfig:
    """Return the sizes of the Q-Former that starts from a BERT, with a row for [DEC].

    Fields that a BERT lacks (queries, cross-attention) have their defaults.

    Raises:
      SourceError: the folder holds no BERT, has no `config.json`, or declares something
        that this package does not have, or sizes that the arrays do not have.
    """
    expect_kind(source, ["bert"], PURPOSE)
    declared, file = source.config, source.path / "config.json"
    if not declared:
        raise SourceError(f"{source.name} has no config.json, which says its sizes")
    check_tables(declared, file, {"": BERT})
    theirs = their_config(declared, file, "BertConfig")
    prefix = _prefix(source)
    layer = f"{prefix}encoder.layer."
    arrays = {
        "vocab_size": (f"{prefix}embeddings.word_embeddings.weight", 0),
        "hidden_size": (f"{prefix}embeddings.word_embeddings.weight", 1),
        "max_position_embeddings": (
            f"{prefix}embeddings.position_embeddings.weight",
            0,
        ),
        "intermediate_size": (f"{layer}0.intermediate.dense.weight", 0),
    }
    layers = {"num_hidden_layers": r"(?:bert\.)?encoder\.layer\.(\d+)\."}
    compare_sizes(theirs, source, arrays, layers)
    try:
        return QFormerConfig(
            width=theirs.hidden_size,
            depth=theirs.num_hidden_layers,
            heads=theirs.num_attention_heads,
            mlp_dim=theirs.intermediate_size,
            vocab_size=theirs.vocab_size + 1,
            max_positions=theirs.max_position_embeddings,
            layer_norm_eps=theirs.layer_norm_eps,
            dropout=theirs.hidden_dropout_prob,
            activation=theirs.hidden_act,
        )
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error


def _prefix(source: CheckpointFiles) -> str:
    """Return the prefix of BERT's arrays, which `BertModel` lacks."""
    return bert.PREFIX if any(name.startswith(bert.PREFIX) for name in source) else ""


def bert_words(source: CheckpointFiles) -> int:
    """Return the number of words of a BERT."""
    name = f"{_prefix(source)}embeddings.word_embeddings.weight"
    return source.shape(name)[0] if name in source else 0


def bert_part(
    source: CheckpointFiles, config: QFormerConfig, *, queries: bool = True
) -> Part:
    """Return a BERT as the start of a Q-Former.

    Args:
      source: the checkpoint.
      config: sizes of the Q-Former.
      queries: include what the query pass uses; False: the text branch alone.

    Raises:
      SourceError: the checkpoint is no BERT, or one of another vocabulary, or its
        folder declares another network.
    """
    expect_kind(source, ["bert"], PURPOSE)
    words = bert_words(source)
    if words >= config.vocab_size:
        raise SourceError(
            f"{source.name} has {words:,} words, with [DEC] {words + 1:,}, but the "
            f"Q-Former's table has {config.vocab_size:,} rows: use the BERT that its "
            f"tokenizer is from, or set qformer.vocab_size to {words + 1}"
        )
    if source.config:
        _compare_with_model(source, config)
    rules = bert.bert_rules(config, source, queries=queries)
    leftovers: tuple[str, ...] = bert.LEFTOVERS
    if not queries:
        leftovers += (r"(bert\.)?(encoder|embeddings)\..*",)
    notes: tuple[str, ...] = ()
    if not any(name.startswith(bert.HEAD) for name in source):
        notes = ("there is no head of masked language modelling: it stays as it is",)
    return Part(source, rules, leftovers, notes)


def _compare_with_model(source: CheckpointFiles, config: QFormerConfig) -> None:
    """Compare what no array shows with the sizes of a model."""
    own = bert_sizes(source)
    for name in _INVISIBLE:
        declared, value = getattr(own, name), getattr(config, name)
        if declared != value:
            raise SourceError(
                f"{source.name} is a BERT with {name} {declared!r}, the Q-Former has "
                f"{value!r}: set qformer.{name}, or let --bert read all sizes"
            )
