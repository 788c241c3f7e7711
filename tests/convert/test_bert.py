"""A Q-Former that starts from BERT reads text as BERT does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.bert_folder import bert_part
from blip2_jax.convert.converted_arrays import ConvertedArrays
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import FeaturesConfig, QFormerConfig
from blip2_jax.nn import trees
from tests.support import peer_models as peers
from tests.support.tolerances import assert_values

SIZES = QFormerConfig(16, 2, 2, 24, num_queries=3, vocab_size=31, max_positions=12)
MODEL = Blip2Stage1(Blip2Config(FeaturesConfig(4, 8), SIZES))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def bert():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    peer = transformers.BertForMaskedLM(sizes).eval()
    peer.bert.embeddings.token_type_embeddings.weight.data.zero_()
    return peer


@pytest.fixture(scope="module")
def fresh():
    params = jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()
    return jax.device_get(params)


def state(bert):
    return {name: value.numpy() for name, value in bert.state_dict().items()}


def start(path, arrays, fresh, sizes=SIZES):
    """Return fresh parameters with those of a BERT checkpoint in place."""
    source = CheckpointFiles(peers.write_pickle(path / "bert.pth", arrays, wrapper=""))
    taken = dict(ConvertedArrays([bert_part(source, sizes)]))
    flat = trees.flatten(fresh)
    assert taken.keys() <= flat.keys()
    return trees.unflatten(flat | taken)


def test_reads_text_as_bert(bert, fresh, tmp_path):
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 30, (2, 5))
    mask = np.array([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        out = bert(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)

    @jax.jit
    def run(params):
        qformer = MODEL.bind({"params": params}).qformer
        hidden = qformer.text_pass(jnp.asarray(ids), jnp.asarray(mask, bool))
        return hidden, qformer.lm_logits(hidden)

    params = start(tmp_path, state(bert), fresh)
    hidden, logits = run(params)
    real = mask.astype(bool)
    assert_values(hidden[real], out.hidden_states[-1].numpy()[real])
    assert_values(logits[real][:, :30], out.logits.numpy()[real])


def test_taken_copied_and_new_parameters(bert, fresh, tmp_path):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in state(bert).items()
    }
    old["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
    params = start(tmp_path, old, fresh)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    ours, layer = params["qformer"], params["qformer"]["layer_0"]
    word = state(bert)["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(ours["embeddings"]["word"][:30], word)
    assert 0 < np.abs(ours["embeddings"]["word"][30]).max() < 0.1
    assert ours["head"]["bias"][30] == 0
    jax.tree.map(np.testing.assert_array_equal, layer["query_mlp"], layer["text_mlp"])
    before = fresh["qformer"]["layer_0"]["cross_attention"]
    jax.tree.map(np.testing.assert_array_equal, layer["cross_attention"], before)


def test_a_missing_layer_is_an_error(bert, fresh, tmp_path):
    source = state(bert)
    deeper = dataclasses.replace(SIZES, depth=3)
    path = peers.write_pickle(tmp_path / "bert.pth", source, wrapper="")
    message = r"has 2 layers where the model has 3.*layer_2.*no bert\.encoder\.layer\.2"
    with pytest.raises(SourceError, match=message):
        ConvertedArrays([bert_part(CheckpointFiles(path), deeper)])


def test_a_bert_of_another_size_is_an_error(bert, tmp_path):
    source = state(bert)
    source["bert.embeddings.position_embeddings.weight"] = np.ones((9, 16), np.float32)
    path = peers.write_pickle(tmp_path / "bert.pth", source, wrapper="")
    arrays = ConvertedArrays([bert_part(CheckpointFiles(path), SIZES)])
    expected = trees.flatten(jax.eval_shape(lambda: init_params(MODEL, KEY)))
    with pytest.raises(SourceError, match=r"position is \(9, 16\), .* \(12, 16\)"):
        arrays.check(expected, absent=(r".*",))
