"""Log-probabilities of given and generated texts, and rankings of candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.inference import inputs, scoring
from blip2_jax.models.blip2 import normalize_images
from tests.support import golden_stage1
from tests.support import peer_models as peers
from tests.support.public_models import photos, stage1, stage2
from tests.support.tolerances import assert_ids, assert_values

PROMPTS = ["a large", "Question: what is it? Answer:", "a large", "", "a large"]
TEXTS = ["red circle", "a star", "small blue star left of a ring", "a ring", "star"]
IMAGE_OF = [0, 1, 0, 1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that writes a model of a family; it returns path and peer."""

    @functools.cache
    def make(family):
        path = tmp_path_factory.mktemp(family) / "theirs"
        return path, peers.write_huggingface(path, family)

    return make


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    return [Image.fromarray(image) for image in pixels]


def their_log_probs(torch, theirs, family, model, row):
    """Score one row with transformers: log-probabilities of the text's tokens."""
    tokenizer, queries = model.language_tokenizer, model.model.config.qformer
    pixels = inputs.as_images(pictures(), 28)[IMAGE_OF[row]][None]
    pixels = torch.tensor(
        np.array(normalize_images(pixels, "clip")).transpose(0, 3, 1, 2)
    )
    prompt, text = PROMPTS[row], TEXTS[row]
    ids = [theirs.config.image_token_index] * queries.num_queries
    if family == "opt":
        space = " " if prompt else ""
        ids += [tokenizer.bos_id, *tokenizer.encode_words(prompt)]
        targets = [*tokenizer.encode_words(space + text), tokenizer.end_id]
        arguments = {"input_ids": torch.tensor([[*ids, *targets]])}
    else:
        ids += [*tokenizer.encode_words(prompt), tokenizer.end_id]
        targets = [*tokenizer.encode_words(text), tokenizer.end_id]
        arguments = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([targets]),
        }
    with torch.no_grad():
        logits = theirs(pixel_values=pixels, **arguments).logits[0]
    logits = logits[-len(targets) - 1 : -1] if family == "opt" else logits
    log_probs = torch.log_softmax(logits, -1)
    return log_probs[range(len(targets)), targets].numpy(), targets


@pytest.mark.parametrize("batch_size", [32, 2])
@pytest.mark.parametrize("family", ["opt", "t5"])
def test_scores_equal_transformers(folder, family, batch_size):
    torch, _ = peers.torch_and_transformers()
    path, theirs = folder(family)
    model = blip2_jax.load(path, precision="float32", batch_size=batch_size)
    scores = model.score(pictures(), TEXTS, PROMPTS, image_of=IMAGE_OF)
    for row in range(len(TEXTS)):
        expected, ids = their_log_probs(torch, theirs, family, model, row)
        length = scores.lengths[row]
        assert_ids(scores.token_ids[row, :length], ids)
        assert_values(scores.token_log_probs[row, :length], expected, "log_probs")
        assert not scores.token_log_probs[row, length:].any()
        assert_values(scores.log_probs[row], expected.sum(), "sum")
        assert_values(scores.mean_log_probs[row], expected.mean(), "mean")


SETTINGS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", ["opt", "t5"])
def test_scores_of_generated_tokens_equal_transformers(folder, family, name):
    torch, _ = peers.torch_and_transformers()
    path, theirs = folder(family)
    model = blip2_jax.load(path, precision="float32")
    settings = {"max_new_tokens": 6, **SETTINGS[name]}
    settings = {"num_beams": 1, **settings}
    pixels = normalize_images(inputs.as_images(pictures()[:1], 28), "clip")
    with torch.no_grad():
        queries = theirs.get_image_features(
            torch.tensor(np.array(pixels).transpose(0, 3, 1, 2))
        )
        queries = getattr(queries, "pooler_output", queries)
        ids, mask = model._prompt_arrays(["a large"])[:2]
        text = theirs.get_input_embeddings()(torch.tensor(ids[mask][None]))
        output = theirs.language_model.generate(
            inputs_embeds=torch.cat([queries, text], 1),
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **settings,
        )
    transitions = theirs.language_model.compute_transition_scores(
        output.sequences,
        output.scores,
        getattr(output, "beam_indices", None),
        normalize_logits=name == "greedy",
    ).numpy()
    found = model.generate(pictures()[0], "a large", return_scores=True, **settings)
    found = found[0] if name == "beams" else found
    for row, result in enumerate(found):
        count = len(result.token_ids)
        ids = output.sequences[row].numpy()
        ids = ids[1:] if family == "t5" else ids[-transitions.shape[1] :]
        assert_ids(result.token_ids, ids[:count])
        assert_values(result.token_log_probs, transitions[row, :count], "tokens")
        assert_values(result.log_prob, transitions[row].sum(), "sum")
        expected = result.log_prob
        if name == "beams":
            expected = output.sequences_scores[row].item()
        assert_values(result.score, expected, "score")
        assert result.text == model.language_tokenizer.decode(result.token_ids)


def test_an_image_and_a_prompt_are_read_once(monkeypatch):
    model, sizes, encoded = stage2(), [], []
    prefill, encode = model._prefill, model._encode_images
    monkeypatch.setattr(
        model, "_prefill", lambda x, *a: sizes.append(len(x)) or prefill(x, *a)
    )
    monkeypatch.setattr(
        model, "_encode_images", lambda x: encoded.append(len(x)) or encode(x)
    )
    texts = ["a cat", "a man", "the red", "where"]
    scores = model.score(photos(2), texts, "what", image_of=[1, 0, 1, 1])
    assert (sizes, encoded) == ([2], [])
    prompts = ["what", "what", "the", "the"]
    other = model.score(photos(2), texts, prompts, image_of=[1, 0, 1, 1])
    assert (sizes, encoded) == ([2, 4], [2])  # three prefixes, padded to four
    assert_values(other.log_probs[:2], scores.log_probs[:2])
    assert np.abs(other.log_probs[2:] - scores.log_probs[2:]).min() > 1e-3


def test_ranking():
    model, images = stage2("stage2_t5_a"), photos(2)
    candidates = ["a cat", "a man on the red", "where", "the"]
    rows = model.rank(images, candidates, questions=["what?", "who?"])
    prompts = ["Question: what? Short answer:", "Question: who? Short answer:"]
    for image, prompt, ranked in zip(images, prompts, rows, strict=True):
        scores = model.score(image, candidates, prompt)
        order = np.argsort(-scores.log_probs)
        assert [one.candidate for one in ranked] == order.tolist()
        assert [one.text for one in ranked] == [candidates[i] for i in order]
        assert_values([one.score for one in ranked], scores.log_probs[order])
        (by_mean,) = model.rank(image, candidates, prompt, length_penalty=1.0)
        order = np.argsort(-scores.mean_log_probs)
        assert [one.candidate for one in by_mean] == order.tolist()
    own = model.rank(images, [candidates[:3], candidates[3:]], prompts)
    assert [len(row) for row in own] == [3, 1]
    assert_values(own[1][0].score, next(r.score for r in rows[1] if r.candidate == 3))


def test_a_penalty_may_be_a_negative_integer():
    lengths, log_probs = np.array([2, 4]), np.array([-1.0, -3.0], np.float32)
    scores = scoring.TextScores(log_probs, lengths, None, None)
    (ranked,) = scoring.rank_texts([["a", "b"]], scores, -1)
    assert [(one.text, one.score) for one in ranked] == [("a", -2.0), ("b", -12.0)]


def test_a_stage1_model_scores_its_captions():
    model, texts = stage1(), ["a cat", "a red cat on the"]
    scores = model.score(photos(2), texts, "a photo of")
    (start,) = model._prompt_arrays(["a photo of"])
    bound = golden_stage1.bound()
    pixels = inputs.as_images(photos(2), 56)
    image = bound.image_keys_values(bound.encode_image(pixels))
    _, cache = bound.qformer.query_pass(bound.query_tokens, image)
    longest = scores.token_ids.shape[1]
    ids = np.concatenate([np.repeat(start, 2, 0), scores.token_ids], axis=1)
    hidden = bound.qformer.generate_pass(
        jnp.asarray(ids), jnp.ones(ids.shape, bool), cache
    )
    log_probs = jax.nn.log_softmax(bound.qformer.lm_logits(hidden[:, :-1]))
    expected = np.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
    expected = expected[:, -longest:]
    for row, length in enumerate(scores.lengths):
        assert_values(
            scores.token_log_probs[row, :length], expected[row, :length], "stage 1"
        )
    (caption,) = model.caption(
        photos(1), num_beams=1, max_new_tokens=4, return_scores=True
    )
    assert_values(caption.score, caption.log_prob)
    with pytest.raises(ValueError, match="this is a stage-1 model"):
        model.rank(photos(1), ["a", "b"], questions="what?")


def test_lengths_and_numbers_of_texts_share_programs():
    model, image = stage2(), photos(1)
    model.score(image, ["a cat", "the", "red"])
    before = scoring.token_log_probs.compiled._cache_size()
    model.score(image, ["a cat is", "the red cat", "a", "where is the"])
    assert scoring.token_log_probs.compiled._cache_size() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda model: model.score(photos(1), " ".join(["cat"] * 60)),
            ValueError,
            "new ones .* take 70 positions; this OPT has 64",
        ),
        (lambda model: model.score(photos(1), []), ValueError, "no texts were given"),
        (lambda model: model.rank(photos(1), []), ValueError, "no candidates were"),
        (
            lambda model: model.rank(photos(1), ["a"], "what", questions="what"),
            ValueError,
            "prompts or questions, not both",
        ),
        (
            lambda model: model.score(photos(2), ["a"] * 3),
            ValueError,
            "3 texts, 2 images",
        ),
        (
            lambda model: model.converse(photos(1), ["what"], return_scores=True),
            ValueError,
            "converse returns texts",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(stage2())
