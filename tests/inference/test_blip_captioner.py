"""BLIP's captioner equals that of transformers; what its captions depend on."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.generation import DecodingConfig
from blip2_jax.inference import blip_captioner, inputs
from blip2_jax.models.vision.vit import normalize_images
from tests.support import capfilt_models as capfilt
from tests.support.peer_models import torch_and_transformers
from tests.support.tolerances import assert_ids, assert_values

PROMPT = "a picture of "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip") / "theirs"
    return path, capfilt.write_blip(path)


@pytest.fixture(scope="module")
def captioner(folder):
    return blip2_jax.load_captioner(folder[0], batch_size=2)


def their_inputs(captioner, count):
    """Return images, normalised images, and prompts from [CLS] to [SEP]."""
    torch, _ = torch_and_transformers()
    size = captioner.model.config.vision.image_size
    pixels = inputs.as_images(capfilt.pictures(count), size)
    images = np.asarray(normalize_images(pixels, "clip")).transpose(0, 3, 1, 2)
    words = captioner.tokenizer.encode_words(PROMPT)
    ids = [101, *words, 102]
    return pixels, torch.tensor(images), torch.tensor([ids] * count)


def test_the_blocks_and_logits_equal_those_of_transformers(folder, captioner):
    torch, _ = torch_and_transformers()
    _, theirs = folder
    pixels, images, _ = their_inputs(captioner, 2)
    ids = np.random.default_rng(1).integers(0, capfilt.BLIP_VOCAB, (2, 9))
    with torch.no_grad():
        features = theirs.vision_model(images).last_hidden_state
        output = theirs.text_decoder(
            torch.tensor(ids),
            encoder_hidden_states=features,
            is_decoder=True,
            output_hidden_states=True,
        )

    @jax.jit
    def run(params, pixels, ids):
        bound = captioner.model.bind({"params": params})
        image = bound.encode_image(pixels)
        decoder = bound.text_decoder
        x = decoder.embeddings(decoder.embeddings.look_up(ids, np.arange(9)[None]))
        states = [x]
        for layer in decoder.stack.unstack(decoder.blocks):
            variables, block = {"params": layer}, decoder.stack.block
            mask = np.tril(np.ones((9, 9), bool))[None, None].repeat(2, 0)
            x, _ = block.apply(variables, x, mask, image, None, method=block.prefill)
            states.append(x)
        return image, states, bound(pixels, ids)

    image, states, logits = run(captioner.params, pixels, ids)
    assert_values(image, features.numpy(), "image encoder")
    assert len(states) == len(output.hidden_states)
    for ours, expected in zip(states, output.hidden_states, strict=True):
        assert_values(ours, expected.numpy(), "block")
    assert_values(logits, output.logits.numpy(), "logits")


SETTINGS = {
    "greedy": {},
    "greedy_repetition": {"repetition_penalty": 1.5, "min_new_tokens": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 3},
    "beam_penalties": {"num_beams": 4, "length_penalty": -1.0, "min_new_tokens": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_equal_those_of_transformers(folder, captioner, name):
    _, theirs = folder
    settings = {"max_new_tokens": 9, **SETTINGS[name]}
    pixels, images, prompts = their_inputs(captioner, 3)
    expected = theirs.generate(images, prompts, do_sample=False, **settings).numpy()
    config = DecodingConfig(**settings)
    start = captioner._start_ids()
    decoded = captioner._decode_batch(pixels, start, config, None)
    expected = expected.reshape(3, config.num_return_sequences, -1)
    assert (expected[..., : len(start)] == start).all()
    expected = expected[..., len(start) :]
    for row in np.ndindex(decoded.lengths.shape):
        length = decoded.lengths[row]
        assert_ids(decoded.ids[row][:length], expected[row][:length], name)
        assert set(expected[row][length:].tolist()) <= {0}


def test_captions_are_texts_without_the_prompt(captioner):
    images = capfilt.pictures(2)
    captions = captioner.caption(images, 5, seed=3)
    assert [len(row) for row in captions] == [5, 5]
    assert len({text for row in captions for text in row}) > 5
    assert not any(text.startswith("a picture of") for row in captions for text in row)
    best = captioner.caption(images, 1, sample=False)
    searched = captioner.caption(images, 3, sample=False)
    assert [row[:1] for row in searched] == best


def test_samples_depend_on_the_seed_and_the_number_of_the_image_alone(captioner):
    images = capfilt.pictures(3)  # batches of two and one
    together = captioner.caption(images, 5, seed=7, indices=range(10, 13))
    alone = captioner.caption(images[1:2], 5, seed=7, indices=[11])
    assert alone == together[1:2]
    turned = captioner.caption(images[::-1], 5, seed=7, indices=range(12, 9, -1))
    assert turned == together[::-1]
    assert captioner.caption(images[1:2], 5, seed=8, indices=[11]) != alone
    assert captioner.caption(images[1:2], 5, seed=7, indices=[12]) != alone
    # The first captions of an image do not depend on how many there are.
    fewer = captioner.caption(images[1:2], 3, seed=7, indices=[11])
    assert fewer == [alone[0][:3]]


def test_a_first_piece_of_a_word_belongs_to_the_prompt(captioner):
    tokenizer = captioner.tokenizer
    piece, dog = capfilt.WORDS.index("##s"), capfilt.WORDS.index("dog")
    start = captioner._start_ids()
    assert captioner._caption_text(start, np.array([piece, dog, 102])) == "s dog"
    assert captioner._caption_text(start, np.array([dog, 102, 0])) == "dog"
    assert tokenizer.decode(start) == "a picture of"


def test_the_limits_count_the_prompt(captioner, monkeypatch):
    """[DEC] and three words of 20 tokens: 16 new ones, of which the first is no end."""
    configs = []

    def decode(images, start, config, keys):
        configs.append(config)
        raise StopIteration

    monkeypatch.setattr(captioner, "_decode_batch", decode)
    for sample in (True, False):
        with pytest.raises(StopIteration):
            captioner.caption(capfilt.pictures(1), 2, sample=sample)
    sampled, searched = configs
    assert (sampled.max_new_tokens, sampled.min_new_tokens) == (16, 1)
    assert (sampled.top_p, sampled.top_k, sampled.repetition_penalty) == (0.9, 50, 1.1)
    assert (searched.num_beams, searched.num_return_sequences) == (3, 2)
    assert searched.convention == "original"


def test_all_captions_of_an_image_share_one_copy_of_its_keys(captioner):
    """The caches of prefill have one row per image; decoding copies none of them."""
    pixels = inputs.as_images(capfilt.pictures(2), 48)
    ids = np.tile(np.array(captioner._start_ids(), np.int32), (2, 1))
    run = blip_captioner.prefill_captioner
    _, prefix = run(captioner.model, captioner.params, pixels, ids)
    assert prefix.cross_key.shape == (3, 2, 2, 10, 16)  # layers, images, heads, tokens
    assert prefix.key.shape == (3, 2, 2, 4, 16)


def test_wrong_arguments_are_refused(captioner):
    images = capfilt.pictures(2)
    with pytest.raises(ValueError, match="1 indices for 2 images"):
        captioner.caption(images, indices=[3])
    with pytest.raises(ValueError, match="indices hold -1"):
        captioner.caption(images, indices=[0, -1])
    with pytest.raises(ValueError, match="max_length=4 leaves none for the caption"):
        captioner.caption(images, max_length=4)
    with pytest.raises(ValueError, match="exceed this model's 40 positions"):
        captioner.caption(images, max_length=90)
    with pytest.raises(ValueError, match="num_return_sequences=0"):
        captioner.caption(images, 0)


def test_the_authors_file_gives_the_same_captioner(tmp_path):
    """Heads are 64 wide and the epsilon is 1e-6 in the authors' code."""
    model = capfilt.write_blip(tmp_path / "folder", width=128, heads=2, eps=1e-6)
    file = capfilt.write_authors_file(tmp_path / "model_large_caption.pth", model)
    with pytest.raises(SourceError, match=r"no tokenizer: .*bert-base-uncased"):
        blip2_jax.load_captioner(file)
    ours = blip2_jax.load_captioner(file, tokenizer=str(tmp_path / "folder"))
    theirs = blip2_jax.load_captioner(tmp_path / "folder")
    assert ours.model.config == theirs.model.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_half_precision(folder):
    path, _ = folder
    captioner = blip2_jax.load_captioner(path, precision="bfloat16", batch_size=1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(captioner.params)} == {
        "bfloat16"
    }
    (captions,) = captioner.caption(capfilt.pictures(1), 2)
    assert len(captions) == 2
    with pytest.raises(ValueError, match="precision is 'float16'"):
        blip2_jax.load_captioner(path, precision="float16")


@pytest.mark.parametrize("size", [32, 80])
def test_another_image_size_interpolates_positions(tmp_path, size):
    torch, _ = torch_and_transformers()
    theirs = capfilt.write_blip(tmp_path)
    captioner = blip2_jax.load_captioner(tmp_path, image_size=size)
    images = np.random.default_rng(0).normal(size=(1, size, size, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
        expected = theirs.vision_model(
            torch.tensor(images.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True
        ).last_hidden_state
    bound = captioner.model.bind({"params": captioner.params})
    assert_values(jax.jit(bound.encode_image)(images), expected.numpy())


def test_load_says_which_function_opens_it(folder):
    with pytest.raises(SourceError, match=r"BLIP's captioner.*load_captioner"):
        blip2_jax.load(folder[0])
    with pytest.raises(SourceError, match="is BLIP's captioner; the similarity"):
        blip2_jax.load_clip(folder[0])
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        blip2_jax.load_captioner("no/such/folder")
