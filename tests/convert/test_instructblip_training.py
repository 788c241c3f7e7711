"""Loss and gradients of InstructBLIP equal those of transformers."""

import jax
import numpy as np
import pytest

from blip2_jax.convert.instructblip_folder import instructblip_rules
from blip2_jax.convert.tables import name_table
from blip2_jax.data.text.prompts import decoder_only_example, encoder_decoder_example
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.load import open_model
from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models.blip2 import normalize_images
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.trees import flatten, unflatten
from tests.support import instructblip_peer as instructblip
from tests.support import peer_models as peers
from tests.support.tolerances import assert_gradients, assert_values

TEXTS = (("a small blue star", "red circle"), ("", "a star"))
TRAINED = ("query_tokens", "qformer.", "language_projection.")


def language_rows(tokenizer):
    """Return the text fields of a batch."""
    if tokenizer.family == "decoder_only":
        rows = [decoder_only_example(tokenizer, *pair, 40) for pair in TEXTS]
    else:
        lengths = {"input_length": 12, "target_length": 10}
        rows = [encoder_decoder_example(tokenizer, *pair, **lengths) for pair in TEXTS]
    return {
        name: np.stack([getattr(row, name) for row in rows]) for name in vars(rows[0])
    }


def batch_of(source):
    """Return a batch of this package."""
    words = load_tokenizer(source.qformer_tokenizer, language_model=False)
    ids, mask = words.encode([prompt for prompt, _ in TEXTS], 10)
    tokenizer = load_tokenizer(source.language_tokenizer, language_model=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    return {
        "image": images,
        "question_ids": ids,
        "question_mask": mask,
        **language_rows(tokenizer),
    }


def their_batch(torch, theirs, batch):
    """Return the same batch for transformers."""
    image = np.full((2, 4), theirs.config.image_token_index)
    values = np.array(normalize_images(batch["image"], "clip"))
    encoder = "input_ids" in batch
    kind = "input" if encoder else "text"
    targets = batch["target_ids" if encoder else "text_ids"]
    labels = np.where(batch["target_mask"], targets, -100)
    if not encoder:
        labels = np.concatenate([np.full((2, 4), -100), labels], 1)
    mask = batch[f"{kind}_mask"]
    arrays = {
        "input_ids": np.concatenate([image, batch[f"{kind}_ids"]], 1),
        "attention_mask": np.concatenate([np.ones_like(image), mask], 1),
        "qformer_input_ids": batch["question_ids"],
        "qformer_attention_mask": batch["question_mask"],
        "labels": labels,
    }
    tensors = {name: torch.tensor(array).long() for name, array in arrays.items()}
    return tensors | {"pixel_values": torch.tensor(values.transpose(0, 3, 1, 2))}


@pytest.mark.parametrize("family", instructblip.FAMILIES)
def test_loss_and_gradients_equal_transformers(tmp_path, family):
    torch, _ = peers.torch_and_transformers()
    theirs = instructblip.write_instructblip(tmp_path / "theirs", family)
    source = open_model(tmp_path / "theirs")
    batch = batch_of(source)
    expected = theirs(**their_batch(torch, theirs, batch)).loss
    expected.backward()
    gradients = {
        name: np.zeros(parameter.shape, np.float32)
        if parameter.grad is None
        else parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if name.startswith(TRAINED)
    }
    rules = [
        rule
        for rule in instructblip_rules(source.config)
        if rule.sources[0].startswith(TRAINED)
    ]
    expected_gradients = flatten(name_table.to_ours_complete(gradients, rules))
    params = unflatten(dict(source.arrays))
    model = Blip2Stage2(source.config, question_in_qformer=True)

    @jax.jit
    @jax.value_and_grad
    def loss(trained):
        bound = model.bind({"params": params | trained})
        return lm_loss(*bound.training_logits(batch))

    parts = ("query_tokens", "qformer", "language_projection")
    value, found = loss({part: params[part] for part in parts})
    assert_values(value, expected.item(), "loss")
    found = flatten(found)
    assert found.keys() == expected_gradients.keys()
    for path, array in expected_gradients.items():
        assert_gradients(found[path], array, path)
