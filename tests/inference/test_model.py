"""The public model classes, compared with the original where it has numbers."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.inputs import batches
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import IMAGE_STATISTICS, FeaturesConfig
from tests.support import golden_stage1, golden_stage2, tolerances
from tests.support.golden_language import tokenizer as word_tokenizer
from tests.support.goldens import GOLDENS
from tests.support.public_models import bert_tokenizer, photos, stage1, stage2

SIZE = 56


@functools.cache
def feature_model() -> Blip2Retriever:
    config = Blip2Config(FeaturesConfig(5, 12), golden_stage1.config().qformer)
    model = Blip2Stage1(config, jnp.float32)
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    return Blip2Retriever(model, params, qformer_tokenizer=bert_tokenizer())


def golden_pixels(monkeypatch, golden):
    """Return the golden's normalised images and make the model accept them."""
    images = golden["image"].transpose(0, 2, 3, 1)
    monkeypatch.setattr(
        "blip2_jax.inference.inputs.as_images", lambda images, size: images
    )
    return images


def test_features_and_match_equal_the_original(monkeypatch):
    golden = golden_stage1.load_case("features")
    images = golden_pixels(monkeypatch, golden)
    path = golden_stage1.STAGE1 / "features_texts.json"
    texts = json.loads(path.read_text())
    model = stage1()
    outputs = model.features(images, mode="image")
    outputs |= model.features(texts=texts, mode="text")
    outputs |= model.features(images, texts, mode="multimodal")
    mask = golden["attention_mask"] != 0
    np.testing.assert_array_equal(outputs["text_mask"], mask)
    for name in ("image_embeds", "image_embeds_proj", "multimodal_embeds"):
        tolerances.assert_values(outputs[name], golden[name], name)
    for name in ("text_embeds", "text_embeds_proj"):
        tolerances.assert_values(outputs[name][mask], golden[name][mask], name)
    match = model.match(images, texts)
    tolerances.assert_values(match.itc, golden["itc_score"][:, 0])
    expected = jax.nn.softmax(golden["itm_logits"], axis=-1)[:, 1]
    tolerances.assert_values(match.itm, expected)


def test_captions_equal_the_original(monkeypatch):
    calls = json.loads((GOLDENS / "stage2_opt_a" / "generate_meta.json").read_text())
    with np.load(GOLDENS / "stage2_opt_a" / "generate.npz") as golden:
        images = golden_pixels(monkeypatch, golden)
    assert stage2().caption(images, decoding="original") == calls["beam5_lp1"]["text"]
    with pytest.raises(ValueError, match="decoding 'lavis': there are '', 'original'"):
        stage2().caption(images, decoding="lavis")
    with pytest.raises(ValueError, match="no decoding 'coco' for 'qformer'; there are"):
        stage1().caption(images, decoding="original_coco")


def test_all_forms_of_images_give_equal_results(tmp_path):
    model, arrays = stage1(), photos(2)
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, pixels in zip(paths, arrays, strict=True):
        Image.fromarray(pixels).save(path)
    expected = model.features(arrays, mode="image")["image_embeds"]
    assert expected.shape == (2, 8, 32)
    for images in (
        np.stack(arrays),
        paths,
        [str(path) for path in paths],
        [Image.fromarray(arrays[0]), arrays[1]],
        jnp.stack(arrays),
    ):
        embeddings = model.features(images, mode="image")["image_embeds"]
        np.testing.assert_array_equal(embeddings, expected)
    for single in (arrays[0], paths[0], Image.fromarray(arrays[0])):
        embeddings = model.features(single, mode="image")["image_embeds"]
        np.testing.assert_allclose(embeddings, expected[:1], atol=1e-5)


def test_pixels_are_normalised_and_resized_as_in_evaluation():
    pixels = photos(1)[0]
    resized = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    mean, deviation = np.array(IMAGE_STATISTICS["clip"], np.float32)
    values = (np.asarray(resized, np.float32) / 255 - mean) / deviation
    model = stage1()
    bound = golden_stage1.bound()
    image = bound.image_keys_values(bound.encode_image(values[None]))
    queries, _ = bound.qformer.query_pass(bound.query_tokens, image)
    embeddings = model.features(pixels, mode="image")["image_embeds"]
    tolerances.assert_values(embeddings, queries)


def test_results_do_not_depend_on_batches_or_neighbours():
    images = photos(5)
    whole = stage1().caption(images, num_beams=2, max_new_tokens=6)
    parts = stage1(batch_size=2).caption(images, num_beams=2, max_new_tokens=6)
    assert whole == parts
    sampled = {"sample": True, "max_new_tokens": 6, "seed": 3}
    whole = stage1().caption(images, **sampled)
    assert whole == stage1(batch_size=2).caption(images, **sampled)
    assert whole != stage1().caption(images, **sampled | {"seed": 4})


def test_batches_are_full_or_a_power_of_two():
    assert [(rows.start, rows.stop, size) for rows, size in batches(11, 8)] == [
        (0, 8, 8),
        (8, 11, 4),
    ]
    assert [size for _, size in batches(3, 3)] == [3]


def test_one_image_may_have_many_questions_and_prompts():
    image, model = photos(1), stage2()
    questions = ["What color is the cat?", "where"]
    answers = model.answer(image, questions, num_beams=2, max_new_tokens=4)
    prompts = [f"Question: {q} Answer:" for q in ("what color is the cat?", "where")]
    settings = {"num_beams": 2, "max_new_tokens": 4, "length_penalty": -1.0}
    assert answers == model.generate(image, prompts, **settings)
    shorter = [prompt.removesuffix(" Answer:") for prompt in prompts]
    other = model.answer(
        image,
        questions,
        num_beams=2,
        max_new_tokens=4,
        question_prompt="Question: {}",
    )
    assert other == model.generate(image, shorter, **settings) != answers
    several = model.caption(image, num_return_sequences=3, max_new_tokens=4)
    assert len(several) == 1
    assert len(several[0]) == 3


def test_images_of_several_questions_are_encoded_once(monkeypatch):
    model, images, questions = stage2(), photos(2), ["why", "where", "who", "how"]
    image_of, settings = [1, 0, 1, 1], {"num_beams": 2, "max_new_tokens": 4}
    repeated = [images[index] for index in image_of]
    expected = model.answer(repeated, questions, **settings)
    batch_sizes = []
    encode = model._encode_images
    monkeypatch.setattr(
        model, "_encode_images", lambda x: batch_sizes.append(len(x)) or encode(x)
    )
    answers = model.answer(images, questions, image_of=image_of, **settings)
    assert answers == expected
    assert batch_sizes == [2]
    with pytest.raises(ValueError, match="image_of names image 2, and there are 2"):
        model.answer(images, questions, image_of=[0, 1, 2, 0])


def test_a_stage1_caption_can_begin_with_a_prompt():
    captions = stage1().caption(photos(2), "a photo of", num_beams=1, max_new_tokens=4)
    assert len(captions) == 2
    with pytest.raises(ValueError, match="equal length"):
        stage1().caption(photos(2), ["a photo", "a photo of"])


def test_feature_model():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(3, 5, 12)).astype(np.float16)
    model = feature_model()
    assert len(model.caption(features=features, num_beams=1, max_new_tokens=3)) == 3
    assert len(model.caption(features=features[0], num_beams=1, max_new_tokens=3)) == 1
    assert model.match(features=list(features), texts="a cat").itm.shape == (3,)
    with pytest.raises(ValueError, match=r"features \(5 x 12 an image\).*not images"):
        model.caption(photos(1))
    with pytest.raises(ValueError, match=r"5 x 12 an image, got \[4, 12\]"):
        model.caption(features=features[:, :4])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: stage1().answer(photos(1), "why"),
            AttributeError,
            "'Blip2Retriever' object has no attribute 'answer'",
        ),
        (
            lambda: stage2().match(photos(1), "a cat"),
            AttributeError,
            "'Blip2Generator' object has no attribute 'match'",
        ),
        (
            lambda: stage2().features(photos(1), mode="text"),
            ValueError,
            "a Blip2Generator has mode 'image'",
        ),
        (
            lambda: stage1().caption(),
            ValueError,
            "pass images, or its features, not nothing",
        ),
        (lambda: stage1().caption([]), ValueError, "no image was given"),
        (lambda: stage1().caption("no.jpg"), FileNotFoundError, "no image file 'no.jp"),
        (lambda: stage1().caption(3), TypeError, "not int"),
        (
            lambda: stage1().caption(np.zeros((4, 4, 3))),
            ValueError,
            r"not \[4, 4, 3\] of float64",
        ),
        (lambda: stage1().match(photos(1), []), ValueError, "no texts were given"),
        (
            lambda: stage1().match(photos(2), ["a"] * 3),
            ValueError,
            "2 images, 3 texts",
        ),
        (
            lambda: stage1().caption(photos(1), beams=3),
            ValueError,
            "decoding has no key 'beam",
        ),
        (lambda: stage1().features(mode="all"), ValueError, "mode 'all'"),
        (lambda: stage1().match(photos(1), "a " * 50), ValueError, "52 tokens"),
        (
            lambda: stage1().caption(photos(1), max_new_tokens=40),
            ValueError,
            "40 positions",
        ),
        (
            lambda: stage2().caption(photos(1), max_new_tokens=64),
            ValueError,
            "this OPT has 64",
        ),
        (
            lambda: stage2("stage2_t5_a", language_tokenizer=None),
            TypeError,
            "multiple values",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tokenizer_and_model_must_be_of_one_family():
    model = Blip2Generator(
        golden_stage2.model("stage2_t5_a"),
        {},
        language_tokenizer=word_tokenizer("stage2_opt_a"),
    )
    with pytest.raises(
        ValueError, match="needs a tokenizer of the family 'encoder_decoder'"
    ):
        model.caption(photos(1))


def test_importing_the_package_imports_no_jax():
    code = "import sys, blip2_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
