"""BERTs in other languages, of any class, as the start of the Q-Former."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip2_jax.convert.bert_folder import SIZES, bert_part, bert_sizes
from blip2_jax.convert.converted_arrays import ConvertedArrays
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.weights import with_text_branch_sizes
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import FeaturesConfig, QFormerConfig
from blip2_jax.nn import trees
from tests.support import peer_berts as peers
from tests.support import peer_models
from tests.support.changed_folder import changed
from tests.support.tolerances import assert_values


def ours(source):
    """Return a model of the BERT's sizes, and its parameters from the BERT."""
    sizes = {name: getattr(bert_sizes(source), name) for name in SIZES}
    config = QFormerConfig(num_queries=3, **sizes)
    model = Blip2Stage1(Blip2Config(FeaturesConfig(4, 8), config))
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    params = trees.flatten(shapes)
    taken = dict(ConvertedArrays([bert_part(source, config)]))
    for path, leaf in params.items():
        if path in taken:
            assert taken[path].shape == leaf.shape, path
    zeros = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    return model, trees.unflatten(zeros | taken), taken


@pytest.mark.parametrize(
    ("kind", "pickle"),
    [
        ("BertModel", False),
        ("BertForMaskedLM", False),
        ("BertForPreTraining", True),
        ("BertForSequenceClassification", True),
    ],
)
def test_every_class_reads_text_as_the_peer(tmp_path, kind, pickle):
    peer = peers.write_bert(tmp_path, kind, pickle=pickle, type_vocab_size=1)
    torch = pytest.importorskip("torch")
    bert = getattr(peer, "bert", peer)
    model, params, taken = ours(CheckpointFiles(tmp_path))
    ids = np.random.default_rng(0).integers(0, len(peers.WORDS), (2, 5))
    with torch.no_grad():
        bert.embeddings.token_type_embeddings.weight.zero_()
        expected = bert(torch.tensor(ids)).last_hidden_state.numpy()
    hidden = jax.jit(
        lambda ids: model.bind({"params": params}).qformer.text_pass(
            ids, jnp.ones(ids.shape, bool)
        )
    )(ids)
    assert_values(hidden, expected)
    assert ("qformer/head/bias" in taken) == hasattr(peer, "cls")


def test_sizes_are_those_of_the_folder(tmp_path):
    sizes = {"hidden_act": "relu", "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.2}
    peers.write_bert(tmp_path, "BertModel", **sizes)
    source = CheckpointFiles(tmp_path)
    found = bert_sizes(source)
    assert found.vocab_size == len(peers.WORDS) + 1
    assert (found.width, found.depth, found.heads, found.mlp_dim) == (16, 2, 2, 24)
    assert (found.max_positions, found.dropout) == (40, 0.2)
    assert (found.activation, found.layer_norm_eps) == ("relu", 1e-5)
    stage2 = Blip2Config(FeaturesConfig(4, 8), QFormerConfig(width=16, heads=2))
    text_branch = with_text_branch_sizes(stage2, tmp_path)
    assert text_branch.qformer.vocab_size == len(peers.WORDS) + 1
    other = dataclasses.replace(found, heads=4)
    with pytest.raises(SourceError, match="a BERT with heads 2, the Q-Former has 4"):
        bert_part(source, other)
    short = dataclasses.replace(found, vocab_size=len(peers.WORDS))
    with pytest.raises(SourceError, match=r"30 words, with \[DEC\] 31.*set .* to 31"):
        bert_part(source, short)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position_embedding_type", "relative_key", "only 'absolute' is supported"),
        ("is_decoder", True, "is_decoder is True"),
        ("num_hidden_layers", 3, "num_hidden_layers is 3, but the weights have 2"),
        ("vocab_size", 99, "vocab_size is 99, but the weights have 30"),
        ("hidden_act", "mish", "mish"),
        ("no_such_setting", 1, "a setting that this package does not know"),
    ],
)
def test_settings_that_are_not_followed(tmp_path, name, value, message):
    peers.write_bert(tmp_path / "bert", "BertModel")
    folder = changed(tmp_path / "bert", tmp_path / "changed", **{name: value})
    with pytest.raises(SourceError, match=message):
        bert_sizes(CheckpointFiles(folder))


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "distilbert"])
def test_relatives_of_bert_are_refused_by_name(tmp_path, model_type):
    query = "encoder.layer.0.attention.self.query.weight"
    save_file({query: np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    message = f"is a '{model_type}', which is like BERT, but no BERT.*multilingual"
    with pytest.raises(SourceError, match=message):
        bert_sizes(CheckpointFiles(tmp_path))


def test_a_relative_of_bert_without_a_config_is_known_by_its_arrays(tmp_path):
    pytest.importorskip("torch")
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    arrays = {name: np.zeros((4, 4), np.float32)}
    path = peer_models.write_pickle(tmp_path / "x.bin", arrays, wrapper="")
    with pytest.raises(SourceError, match="is a 'roberta', which is like BERT"):
        bert_part(CheckpointFiles(path), QFormerConfig())
