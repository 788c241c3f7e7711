"""Low-rank adaptation in every dense layer of a model: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn import low_rank
from blip2_jax.nn.trees import flatten, matches, unflatten
from blip2_jax.training import lora
from blip2_jax.training.tasks import make_task
from tests.support import one_step
from tests.support.tolerances import assert_gradients

RANK, ALPHA = 2, 6.0
ADAPTED = {
    "stage1": "itm_head/kernel",
    "stage2": "language_model/blocks/mlp/up/kernel",
    "t5": "language_model/decoder/blocks/cross_attention/value/kernel",
    "vqa": "qformer/layer_0/cross_attention/key/kernel",
}
# With a question, the text's part of the last block has no effect.
UNREAD = ("^qformer/layer_0/text_mlp/",)


def adapted(name, dtype="float32"):
    """Return the task of a configuration whose kernels are all adapted.

    Returns:
      The task; its parameters without A and B; A and B, both random, by path; and a
      batch.
    """
    config = one_step.config_of(name)
    config.precision, config.frozen = dtype, (".",)
    config.lora.rank, config.lora.alpha, config.lora.targets = RANK, ALPHA, (".",)
    task = make_task(config)
    base = flatten(task.init_params(jax.random.key(0)))
    shapes = lora.matrix_shapes(lora.lora_of(config), base, config.frozen)
    rng = np.random.default_rng(1)
    matrices = {
        path: jnp.asarray(rng.normal(size=leaf.shape, scale=0.1), jnp.float32)
        for path, leaf in shapes.items()
    }
    batch = {
        name: jnp.asarray(array)
        for name, array in one_step.rows(name).items()
        if name != "position" and not name.startswith("_")
    }
    return task, base, matrices, batch


def merge(base, matrices):
    """Compute W + alpha / rank A B in the plainest way."""
    merged = dict(base)
    for path in low_rank.adapted_kernels(matrices):
        a, b = (matrices[name] for name in low_rank.matrix_paths(path))
        product = jnp.einsum("...ir,...ro->...io", a, b, precision="highest")
        merged[path] = base[path] + ALPHA / RANK * product
    return merged


@pytest.mark.parametrize(
    "name", [pytest.param("stage1", marks=pytest.mark.slow), "stage2", "t5", "vqa"]
)
def test_values_and_gradients_equal_those_of_merged_kernels(name):
    """Scanned stacks, the Q-Former, its folded keys and values; vqa rematerialises.

    No kernel's matrices are ignored: their gradients are not all zero.
    """
    task, base, matrices, batch = adapted(name)
    loss = lambda params: task.loss(unflatten(params), batch, None)[0]
    with_matrices = lambda matrices: loss(base | matrices)
    with_merged = lambda matrices: loss(merge(base, matrices))
    value, gradients = jax.jit(jax.value_and_grad(with_matrices))(matrices)
    expected, expected_gradients = jax.jit(jax.value_and_grad(with_merged))(matrices)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, gradient in gradients.items():
        assert_gradients(gradient, expected_gradients[path], path)
    assert low_rank.matrix_paths(ADAPTED[name])[0] in gradients
    unread = [path for path, leaf in gradients.items() if not np.abs(leaf).max() > 0]
    assert not [path for path in unread if not matches(UNREAD, path)]


def test_b_of_zero_is_the_base_exactly():
    task, base, matrices, batch = adapted("stage2", dtype="bfloat16")
    zero_b = {
        path: 0 * matrix if path.endswith(low_rank.B) else matrix
        for path, matrix in matrices.items()
    }
    loss = jax.jit(lambda params: task.loss(unflatten(params), batch, None)[0])
    assert loss(base | zero_b) == loss(base)
    assert loss(base | matrices) != loss(base)


def test_kernels_are_merged_alike_on_host_and_devices():
    rng = np.random.default_rng(0)
    kernel, a, b = (
        rng.normal(size=size).astype(np.float32)
        for size in ((2, 5, 4), (2, 5, 3), (2, 3, 4))
    )
    host = low_rank.merge_kernel(kernel, a, b, 0.5)
    np.testing.assert_allclose(host, kernel + 0.5 * a @ b, rtol=1e-6)
    device = low_rank.merge_kernel_on_device(*map(jnp.asarray, (kernel, a, b)), 0.5)
    np.testing.assert_allclose(device, host, rtol=1e-6, atol=1e-6)
    half = kernel.astype(np.float16)
    assert low_rank.merge_kernel(half, a, b, 0.5).dtype == np.float16
