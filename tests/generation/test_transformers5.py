"""Convention `transformers5`, token for token equal to the installed transformers.

Our decoding gets its logits from the torch model, so that only decoding is compared.
`generate` is called as in `Blip2ForConditionalGeneration`: with embeddings of the
prefix, and for OPT also with the prompt's ids, which the repetition penalty counts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation import DecodingConfig, decode
from blip2_jax.generation.decode import keep_top_k_then_p
from blip2_jax.generation.decoder import penalize_repetition
from tests.support.history_decoder import history_decoder
from tests.support.tolerances import assert_ids

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

torch.set_num_threads(1)
VOCAB, WIDTH, ROWS, PREFIX, EOS = 24, 16, 6, 5, 3


def tiny_opt():
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=WIDTH,
        dropout=0.0,
        init_std=0.6,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=EOS,
    )
    return transformers.OPTForCausalLM(config)


def tiny_t5():
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        initializer_factor=2.0,
        pad_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def build(family, seed):
    torch.manual_seed(seed)
    model = (tiny_opt if family == "opt" else tiny_t5)().eval()
    with torch.no_grad():  # so that sequences end at many lengths
        head = model.get_output_embeddings().weight
        head[EOS] += 0.7 * head.std() * torch.randn(head.shape[1])
    prefix = torch.randn(ROWS, PREFIX, WIDTH)
    mask = torch.ones(ROWS, PREFIX, dtype=torch.long)
    mask[1::2, :2] = 0  # left padding
    prompt = torch.randint(4, VOCAB, (ROWS, PREFIX))
    return model, prefix, mask, prompt.masked_fill(mask == 0, 1)


def torch_logits(model, prefix, mask, rows, past):
    """Compute the logits after `past` [X,t] of rows [X], without a cache."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.zeros(len(rows), 1, dtype=torch.long)
            return model(
                inputs_embeds=prefix[rows],
                attention_mask=mask[rows],
                decoder_input_ids=torch.cat([start, past], 1),
            ).logits[:, -1]
        embeds = torch.cat([prefix[rows], model.get_input_embeddings()(past)], 1)
        full_mask = torch.cat([mask[rows], torch.ones_like(past)], 1)
        return model(inputs_embeds=embeds, attention_mask=full_mask).logits[:, -1]


MODEL = []  # model, prefix embeddings and mask of the running test


def next_logits(rows, past, time):
    def callback(rows, past, time):
        batch, beams, _ = past.shape
        past = torch.tensor(np.array(past[..., : int(time) + 1])).long().flatten(0, 1)
        logits = torch_logits(*MODEL, np.repeat(np.array(rows), beams), past)
        return logits.reshape(batch, beams, VOCAB).float().numpy()

    shape = jax.ShapeDtypeStruct((*past.shape[:2], VOCAB), jnp.float32)
    return jax.pure_callback(callback, shape, rows, past, time)


@functools.partial(jax.jit, static_argnums=(3, 4))
def run(rows, first, history, pad_id, config):
    decoder = history_decoder(next_logits, eos_id=EOS, pad_id=pad_id)
    return decode(decoder, first, rows, config, history=history)


def ours(model, prefix, mask, config, history):
    MODEL[:] = model, prefix, mask
    no_tokens = torch.zeros(ROWS, 0, dtype=torch.long)
    first = torch_logits(*MODEL, np.arange(ROWS), no_tokens).numpy()
    pad_id = model.config.pad_token_id
    return jax.device_get(run(np.arange(ROWS), first, history, pad_id, config))


SETTINGS = {
    "greedy": {},
    "greedy_min": {"min_new_tokens": 5},
    "greedy_repetition": {"repetition_penalty": 1.7},
    "beam": {"num_beams": 4},
    "beam_short": {"num_beams": 3, "length_penalty": -1.0},
    "beam_long": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3},
    "beam_min": {"num_beams": 4, "min_new_tokens": 6},
    "beam_repetition": {"num_beams": 4, "repetition_penalty": 1.7},
    "beam_early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 2},
    "beam_never": {"num_beams": 4, "early_stopping": "never", "length_penalty": 1.5},
}


@pytest.mark.parametrize("family", ["opt", "t5"])
@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_scores_are_equal(family, name):
    settings = {"max_new_tokens": 10, **SETTINGS[name]}
    config = DecodingConfig(**settings)
    for seed in range(2):
        model, prefix, mask, prompt = build(family, seed)
        theirs = model.generate(
            inputs_embeds=prefix,
            attention_mask=mask,
            return_dict_in_generate=True,
            output_scores=True,
            do_sample=False,
            **({"input_ids": prompt} if family == "opt" else {}),
            **settings,
        )
        history = np.zeros((ROWS, 1), np.int32)  # T5's start token
        if family == "opt":
            history = np.where(mask.numpy(), prompt.numpy(), -1)
        decoded = ours(model, prefix, mask, config, history)
        results = config.num_return_sequences
        ids = theirs.sequences.reshape(ROWS, results, -1).numpy()
        ids = ids[:, :, history.shape[1] :]
        for row in np.ndindex(ROWS, results):
            length = decoded.lengths[row]
            assert_ids(decoded.ids[row][:length], ids[row][:length])
            if length < ids.shape[-1]:
                assert ids[row][length - 1] == EOS
        if config.num_beams > 1:
            scores = theirs.sequences_scores.reshape(ROWS, results).numpy()
            np.testing.assert_allclose(decoded.scores, scores, rtol=1e-4)


def test_tokens_to_sample_from_equal_those_of_transformers():
    """Repetition penalty, then the 50 most likely tokens, then 90 % of the rest."""
    from transformers.generation import logits_process as theirs

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 200)).astype(np.float32) * 3
    ids = rng.integers(0, 200, (6, 30))
    expected = torch.tensor(logits)
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.1),
        theirs.TopKLogitsWarper(50),
        theirs.TopPLogitsWarper(0.9),
    ):
        expected = processor(torch.tensor(ids), expected)
    rows = jnp.asarray(logits)[:, None], jnp.asarray(ids, jnp.int32)[:, None]
    penalized = penalize_repetition(*rows, 1.1)
    actual = keep_top_k_then_p(penalized[:, 0], 50, 0.1, 64)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6)
    assert 1 < np.isfinite(actual).sum() / 6 < 50
