"""Models whose towers are quantised: captions, memory, sharding, gradients."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.evaluation import shapes_exam
from blip2_jax.inference.example_images import FIRST_SCENE
from blip2_jax.losses.stage2 import stage2_loss
from blip2_jax.nn.quantized import is_quantized, restore_kernel

EXAM = shapes_exam.make_exam("heldout", 16, start=FIRST_SCENE)


@pytest.fixture(scope="module")
def plain():
    return blip2_jax.load("shapes")


@pytest.mark.parametrize("scheme", ["int8", "int8_matmul"])
def test_captions_are_as_good_with_8_bits(plain, scheme):
    model = blip2_jax.load("shapes", quantize=scheme)
    kernels = filter(is_quantized, jax.tree.leaves(model.params, is_leaf=is_quantized))
    assert len(list(kernels)) == 12  # 6 of the image encoder, 6 of the language model
    accuracy = shapes_exam.caption_exam(model, EXAM).attributes
    assert accuracy > shapes_exam.caption_exam(plain, EXAM).attributes - 0.05


def test_a_mesh_holds_a_quantised_model():
    images = EXAM.images[:4]
    model = blip2_jax.load("shapes", quantize="int4")
    sharded = blip2_jax.load("shapes", quantize="int4", mesh={"fsdp": 2, "tensor": 2})
    assert sharded.caption(images) == model.caption(images)


def test_gradients_pass_through_a_quantised_language_model():
    """They are those of the kernels as they are stored."""
    model = blip2_jax.load("shapes", quantize="int8_matmul")
    restored = jax.tree.map(
        lambda leaf: restore_kernel(leaf) if is_quantized(leaf) else leaf,
        model.params,
        is_leaf=is_quantized,
    )
    ids = np.tile(np.arange(3, 11, dtype=np.int32), (2, 1))
    mask = np.ones(ids.shape, bool)
    batch = {
        "image": EXAM.images[:2],
        "text_ids": ids,
        "text_mask": mask,
        "target_mask": mask,
    }

    def gradient(params):
        def loss(projection):
            changed = params | {"language_projection": projection}
            return stage2_loss(model.model, changed, batch, None)[0]

        return jax.grad(loss)(params["language_projection"])["kernel"]

    actual, expected = gradient(model.params), gradient(restored)
    cosine = (actual * expected).sum() / (
        np.linalg.norm(actual) * np.linalg.norm(expected)
    )
    assert cosine > 0.98
