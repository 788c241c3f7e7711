"""mBLIP, BLIP-2 with an mT5: equality with transformers, round trip, a folder alone."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.configs import stage2_language_model
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.language_folder import language_sizes_of
from blip2_jax.convert.weights import open_arrays
from blip2_jax.data.text.prompts import encoder_decoder_example
from blip2_jax.generation import DecodingConfig
from blip2_jax.inference.load import open_model
from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models.blip2 import normalize_images
from blip2_jax.models.presets import preset
from blip2_jax.training.tasks import model_config
from tests.support import peer_models as peers
from tests.support.tolerances import assert_gradients, assert_ids, assert_values

TEXTS = (("a small blue star", "a red circle"), ("", "a star"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a model once; return path and peer."""
    path = tmp_path_factory.mktemp("mblip") / "theirs"
    return path, peers.write_huggingface(path, "mt5")


def images():
    return np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)


def inputs_of(torch, theirs, ids, mask):
    """Return images and prompts for transformers."""
    image = np.full((2, 4), theirs.config.image_token_index)
    values = np.array(normalize_images(images(), "clip")).transpose(0, 3, 1, 2)
    return {
        "pixel_values": torch.tensor(values),
        "input_ids": torch.tensor(np.concatenate([image, ids], 1)).long(),
        "attention_mask": torch.tensor(np.concatenate([image >= 0, mask], 1)).long(),
    }


def test_logits_loss_and_gradients_equal_transformers(written):
    torch, _ = peers.torch_and_transformers()
    path, theirs = written
    model = blip2_jax.load(path, precision="float32")
    rows = [
        encoder_decoder_example(
            model.language_tokenizer, *pair, input_length=9, target_length=7
        )
        for pair in TEXTS
    ]
    names = ("input_ids", "input_mask", "target_ids", "target_mask")
    batch = {name: np.stack([getattr(row, name) for row in rows]) for name in names}
    labels = np.where(batch["target_mask"], batch["target_ids"], -100)
    expected = theirs(
        **inputs_of(torch, theirs, batch["input_ids"], batch["input_mask"]),
        labels=torch.tensor(labels).long(),
    )
    expected.loss.backward()

    @jax.jit
    def loss(trained):
        bound = model.model.bind({"params": model.params | trained})
        logits, *targets = bound.training_logits({"image": images(), **batch})
        return lm_loss(logits, *targets), logits

    parts = ("query_tokens", "language_projection")
    trained = {part: model.params[part] for part in parts}
    (value, logits), found = jax.value_and_grad(loss, has_aux=True)(trained)
    seen = batch["target_mask"]
    assert_values(np.asarray(logits)[seen], expected.logits.detach()[seen], "logits")
    assert_values(value, expected.loss.item(), "loss")
    kernel = theirs.language_projection.weight.grad.numpy().T
    assert_gradients(found["language_projection"]["kernel"], kernel, "projection")
    queries = theirs.query_tokens.grad.numpy()[0]
    assert_gradients(found["query_tokens"], queries, "queries")


def test_ids_equal_those_of_transformers(written):
    torch, _ = peers.torch_and_transformers()
    path, theirs = written
    model = blip2_jax.load(path, precision="float32")
    prompts = model._prompt_arrays([prompt for prompt, _ in TEXTS])
    for settings in ({}, {"num_beams": 3, "length_penalty": -1.0}):
        settings = {"max_new_tokens": 7, **settings}
        ids = theirs.generate(
            **inputs_of(torch, theirs, *prompts), do_sample=False, **settings
        )
        config = DecodingConfig(**settings)
        found = jax.device_get(model._decode_batch(images(), prompts, config))
        for row, length in enumerate(found.lengths[:, 0]):
            expected = ids[row, 1 : length + 1].numpy()
            assert_ids(found.ids[row, 0, :length], expected, str(settings))


def test_the_round_trip_is_a_t5_of_the_same_arrays(written, tmp_path):
    _, transformers = peers.torch_and_transformers()
    path, theirs = written
    model = open_model(path)
    write_huggingface(model, tmp_path / "back")
    peers.assert_same(CheckpointFiles(tmp_path / "back"), CheckpointFiles(path))
    assert open_model(tmp_path / "back").config == model.config
    kind = transformers.Blip2ForConditionalGeneration
    again, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.text_config.model_type == "t5"
    head = theirs.language_model.lm_head.weight.detach().numpy()
    np.testing.assert_array_equal(
        again.language_model.lm_head.weight.detach().numpy(), head
    )


def test_an_mt5_is_a_language_model(written, tmp_path):
    path, theirs = written
    folder = tmp_path / "mt5"
    theirs.language_model.save_pretrained(folder)
    sizes = language_sizes_of(folder)
    model = open_model(path)
    assert sizes == model.config.language_model
    config = stage2_language_model.get_config(str(folder))
    assert model_config(config.model).language_model == sizes
    arrays = open_arrays(folder, model.config)
    assert len(arrays) > 20
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], model.arrays[name], name)


def test_the_released_size():
    sizes = preset("mblip_mt0xl").language_model
    flan = preset("pretrain_flant5xl").language_model
    assert (sizes.width, sizes.vocab_size) == (flan.width, 250_112)
    assert sizes.activation == "gelu_new"
