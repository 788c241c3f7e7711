"""Hugging Face models opened by `load`: outputs equal those of transformers."""

import jax
import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.generation import DecodingConfig
from blip2_jax.inference import inputs
from blip2_jax.inference.load import open_model
from blip2_jax.models.blip2 import normalize_images
from tests.support import peer_models as peers
from tests.support.tolerances import assert_ids, assert_values

TEXTS = ["a large red circle", "small blue star left of a large green ring", ""]


def pictures(size=(40, 52), count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    return [Image.fromarray(image).resize(size[::-1]) for image in pixels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that exports a model of a family, and the peer."""
    made = {}

    def make(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            model = peers.write_huggingface(path / "theirs", family)
            write_huggingface(open_model(path / "theirs"), path / "ours")
            made[family] = path / "ours", model
        return made[family]

    return make


def processed(path, texts, images):
    """Process inputs with transformers' processor, read from an exported folder."""
    _, transformers = peers.torch_and_transformers()
    processor = transformers.Blip2Processor.from_pretrained(path)
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def test_pixels_equal_those_of_transformers(folder):
    path, _ = folder("opt")
    theirs = processed(path, TEXTS, pictures())["pixel_values"].numpy()
    ours = normalize_images(inputs.as_images(pictures(), 28), "clip")
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=1e-5)


# Every option of decoding is compared in tests/generation/test_transformers5.py.
SETTINGS = {
    "greedy_repetition": {"repetition_penalty": 1.5},
    "beam_5": {"num_beams": 5},
    "beam_all": {
        "num_beams": 3,
        "min_new_tokens": 3,
        "length_penalty": -1.0,
        "repetition_penalty": 1.3,
        "num_return_sequences": 2,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", ["opt", "t5", "llama"])
def test_ids_equal_those_of_transformers(folder, family, name):
    """Images and prompts of unequal length, against transformers' `generate`."""
    path, theirs = folder(family)
    settings = {"max_new_tokens": 9, **SETTINGS[name]}
    processed_inputs = processed(path, TEXTS, pictures())
    ids = theirs.generate(**processed_inputs, do_sample=False, **settings).numpy()
    model = blip2_jax.load(path, precision="float32")
    tokenizer = load_tokenizer(str(path), language_model=True)
    pixels = inputs.as_images(pictures(), 28)
    config = DecodingConfig(**settings)
    prompts = model._prompt_arrays(TEXTS)
    found = jax.device_get(model._decode_batch(pixels, prompts, config))
    ids = ids.reshape(len(TEXTS), config.num_return_sequences, -1)
    if family == "t5":
        ids = ids[..., 1:]  # the decoder's start token
    else:
        ids = (
            ids[..., processed_inputs["input_ids"].shape[1] :]
            if ids.shape[-1] > 9
            else ids
        )
    for row in np.ndindex(found.lengths.shape):
        length = found.lengths[row]
        assert_ids(found.ids[row][:length], ids[row][:length], name)
        rest = set(ids[row][length:].tolist())
        assert rest <= {model.model.config.language_model.pad_id, tokenizer.end_id}


def test_match_and_features(folder):
    torch, _ = peers.torch_and_transformers()
    path, theirs = folder("retrieval")
    texts, images = TEXTS[:2], pictures(count=2)
    given = processed(path, texts, images)
    with torch.no_grad():
        itm = theirs(**given, use_image_text_matching_head=True).logits_per_image
        itc = theirs(**given, use_image_text_matching_head=False)
    model = blip2_jax.load(path)
    match = model.match(images, texts)
    assert_values(match.itm, itm.softmax(-1)[:, 1].numpy())
    assert_values(match.itc, np.diagonal(itc.logits_per_image.numpy()))
    image = model.features(images, mode="image")
    assert_values(image["image_embeds_proj"], itc.image_embeds.numpy())
    text = model.features(texts=texts, mode="text")
    assert_values(text["text_embeds_proj"][:, 0], itc.text_embeds.numpy())
    with pytest.raises(ValueError, match="without the head that generates captions"):
        model.caption(images)


@pytest.mark.parametrize("size", [364, 490])
def test_other_resolutions(tmp_path, size):
    """Position embeddings of 224 px, interpolated as in the original."""
    torch, transformers = peers.torch_and_transformers()
    config = peers.huggingface_config(transformers, "opt")
    config.vision_config.image_size = 224
    config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    theirs = transformers.Blip2ForConditionalGeneration(config).eval()
    for parameter in theirs.vision_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    model = blip2_jax.load(tmp_path / "theirs", image_size=size)
    images = np.random.default_rng(0).normal(size=(1, size, size, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
        expected = theirs.vision_model(
            torch.tensor(images.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True
        ).last_hidden_state
    bound = model.model.bind({"params": model.params})
    features = bound.ln_vision(bound.encode_image(images)).applied()
    assert_values(features, expected.numpy())
