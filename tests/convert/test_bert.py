"""A Q-Former that starts from BERT reads text as BERT does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_stage1 import assert_values

from blip2_jax.convert.bert import start_from_bert
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.presets import Blip2Config, FeaturesConfig, QFormerConfig

SIZES = QFormerConfig(16, 2, 2, 24, num_queries=3, vocab_size=31, max_positions=12)
MODEL = Blip2Stage1(Blip2Config(FeaturesConfig(4, 8), SIZES))


@pytest.fixture(scope="module")
def bert():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=12,
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


def test_reads_text_as_bert(bert, fresh):
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 30, (2, 5))
    mask = np.array([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        out = bert(
            torch.tensor(ids), torch.tensor(mask), output_hidden_states=True
        )

    @jax.jit
    def run(params):
        apply = lambda method, *args: MODEL.apply(
            {"params": params}, *args, method=method
        )
        hidden = apply("text_pass", jnp.asarray(ids), jnp.asarray(mask, bool))
        return hidden, apply("lm_logits", hidden)

    params = start_from_bert(fresh, state(bert), SIZES)
    hidden, logits = run(params)
    real = mask.astype(bool)
    assert_values(hidden[real], out.hidden_states[-1].numpy()[real])
    assert_values(logits[real][:, :30], out.logits.numpy()[real])


def test_what_is_taken_copied_and_new(bert, fresh):
    source = state(bert)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in source.items()
    }
    params = start_from_bert(fresh, old, SIZES)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    ours, layer = params["qformer"], params["qformer"]["layer_0"]
    word = ours["embeddings"]["word"]
    np.testing.assert_array_equal(word[30], fresh["qformer"]["embeddings"]["word"][30])
    jax.tree.map(np.testing.assert_array_equal, layer["query_mlp"], layer["text_mlp"])
    before = fresh["qformer"]["layer_0"]["cross_attention"]
    jax.tree.map(np.testing.assert_array_equal, layer["cross_attention"], before)


def test_another_bert_is_refused(bert, fresh):
    source = state(bert)
    deeper = dataclasses.replace(SIZES, depth=3)
    with pytest.raises(ValueError, match="layer_2"):
        start_from_bert(fresh, source, deeper)
    source["bert.embeddings.position_embeddings.weight"] = np.ones((9, 16), np.float32)
    with pytest.raises(ValueError, match="position"):
        start_from_bert(fresh, source, SIZES)
