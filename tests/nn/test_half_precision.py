"""OPT and T5 in bfloat16: as near to fp32 as torch's own bfloat16 is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.language_families.registry import language_model_rules
from blip2_jax.convert.tables import name_table
from blip2_jax.models.language.interface import build_language_model
from blip2_jax.models.sizes import OPTConfig, T5Config
from tests.support.tolerances import record

CONFIGS = {
    "opt": OPTConfig(128, 4, 4, 256, vocab_size=200, max_positions=64),
    "opt350m": OPTConfig(
        128, 4, 4, 256, vocab_size=200, max_positions=64, embed_width=64, pre_norm=False
    ),
    "t5": T5Config(128, 4, 4, 192, head_width=32, vocab_size=200),
}
ROWS, LENGTH = 8, 24


def torch_model(transformers, config):
    if isinstance(config, OPTConfig):
        return transformers.OPTForCausalLM(
            transformers.OPTConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                ffn_dim=config.mlp_dim,
                max_position_embeddings=config.max_positions,
                word_embed_proj_dim=config.embedding_width,
                init_std=0.08,
                do_layer_norm_before=config.pre_norm,
            )
        ).eval()
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.mlp_dim,
            num_layers=config.depth,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu",
            dense_act_fn="gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    ).eval()


def torch_logits(model, ids, family):
    import torch

    ids = torch.tensor(ids)
    with torch.no_grad():
        if family == "t5":
            start = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
            return model(input_ids=ids, decoder_input_ids=start).logits.float().numpy()
        return model(input_ids=ids).logits.float().numpy()


def our_logits(config, params, ids, dtype):
    model = build_language_model(config, dtype, scan=True, remat="none")
    mask = np.ones(ids.shape, bool)
    batch = {"text_ids": ids, "text_mask": mask, "target_mask": mask}
    batch |= {"input_ids": ids, "input_mask": mask, "target_ids": ids}

    def run(params):
        bound = model.bind({"params": params})
        if isinstance(config, T5Config):
            return bound.training_logits(None, batch)[0]
        return bound.logits(bound.hidden(bound.embed(ids), mask))

    return np.asarray(jax.jit(run)(params), np.float32)


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16_is_as_good_as_torchs(family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = CONFIGS[family]
    theirs = torch_model(transformers, config)
    source = {key: value.numpy() for key, value in theirs.state_dict().items()}
    rules = language_model_rules(config)
    params = name_table.to_ours_complete(source, rules)["language_model"]
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (ROWS, LENGTH))
    exact = torch_logits(theirs, ids, family)
    scale = np.abs(exact).max()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    ours = our_logits(config, half, ids, jnp.bfloat16)
    peers = torch_logits(theirs.to(torch.bfloat16), ids, family)
    error, allowed = (
        np.sqrt(np.square(actual - exact).mean()) for actual in (ours, peers)
    )
    record("bf16", f"ours, of {scale:.2g}", ours, exact, scale)
    record("bf16", f"torch, of {scale:.2g}", peers, exact, scale)
    assert error < 1.2 * allowed and error < 0.05 * scale
