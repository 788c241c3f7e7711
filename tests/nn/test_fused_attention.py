"""The rule that chooses an attention kernel, and the arguments of cuDNN's.

Without a GPU, numbers come from XLA's implementation of the same call, and programs are
lowered for CUDA without being run. With a GPU, `JAX_PLATFORMS=cuda` compares what the
kernel computes.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as kernel

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.nn import fused_attention
from blip2_jax.nn.attention import attention
from blip2_jax.nn.cudnn_attention import cudnn_attention
from blip2_jax.parallel import sharding

B, H, K = 2, 3, 8


@pytest.fixture
def for_gpu(monkeypatch):
    """Select cuDNN for a GPU program; the library's version is faked."""
    monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91000)
    with fused_attention.chosen("cudnn", "gpu"):
        yield


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def calls(function, *args) -> list[str]:
    """Return the cuDNN kernels that a program for CUDA calls."""
    traced = jax.jit(function).trace(*args)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    words = text.replace("(", " ").split()
    return [word.removeprefix("@__cudnn$fmha") for word in words if "$fmha" in word]


def shapes(width, lengths, dtype=jnp.bfloat16):
    """Abstract queries and keys."""
    return [jax.ShapeDtypeStruct((B, length, H, width), dtype) for length in lengths]


@pytest.mark.parametrize(
    "width, lengths, options, cudnn, pallas",
    [
        (88, (257, 257), {}, True, True),  # ViT-g
        (64, (32, 257), {}, True, True),  # queries read an image
        (80, (64, 64), {"restricted": True}, True, False),  # OPT-2.7B, even lengths
        (64, (63, 64), {"restricted": True}, False, False),
        (64, (64, 63), {"restricted": True}, False, False),
        (128, (64, 64), {}, True, True),
        (136, (64, 64), {}, False, False),
        (84, (64, 64), {}, False, False),
        (64, (64, 64), {"dropout": True}, False, False),
        (64, (64, 64), {"dtype": jnp.float32}, False, False),
        (64, (64, 64), {"dtype": jnp.float16}, True, False),
    ],
)
def test_supported_shapes(width, lengths, options, cudnn, pallas):
    options = {"restricted": False, "dropout": False} | options
    arrays = shapes(width, lengths, options.pop("dtype", jnp.bfloat16))
    possible = {}
    for choice, platform in (("cudnn", "gpu"), ("pallas", "tpu")):
        with fused_attention.chosen(choice, platform):
            kernel = fused_attention.kernel_of(*arrays, **options)
        possible[choice] = kernel == choice
        assert kernel in (choice, "xla")
    assert possible == {"cudnn": cudnn, "pallas": pallas}


@pytest.mark.parametrize(
    "platform, restricted, lengths, kernel",
    [
        ("gpu", False, (257, 257), "cudnn"),
        ("cuda", False, (1226, 1226), "cudnn"),
        ("gpu", True, (256, 256), "xla"),
        ("tpu", False, (257, 257), "xla"),
        ("tpu", False, (32, 1226), "xla"),  # queries read a large image
        ("tpu", False, (677, 677), "pallas"),
        ("tpu", False, (1226, 1226), "pallas"),
        ("tpu", True, (1226, 1226), "xla"),
        ("cpu", False, (1226, 1226), "xla"),
        (None, False, (1226, 1226), "xla"),
    ],
)
def test_auto_decides_by_platform_and_length(platform, restricted, lengths, kernel):
    if platform is None and jax.default_backend() != "cpu":
        pytest.skip("the default backend is not a CPU")
    with fused_attention.chosen("auto", platform):
        found = fused_attention.kernel_of(
            *shapes(88, lengths), restricted=restricted, dropout=False
        )
    assert found == kernel


def test_rows_that_a_mesh_does_not_divide_run_without_a_kernel():
    mesh = sharding.make_mesh(data=4, tensor=2)
    with jax.set_mesh(mesh), fused_attention.chosen("auto", "tpu"):
        for rows, kernel in ((8, "pallas"), (6, "xla")):
            x = jax.ShapeDtypeStruct((rows, 677, 16, 88), jnp.bfloat16)
            found = fused_attention.kernel_of(x, x, restricted=False, dropout=False)
            assert found == kernel


@pytest.mark.parametrize("lengths", [(4, 6), (5, 7), (5, 6)])
@pytest.mark.parametrize("restrictions", ["", "mask", "bias", "mask bias"])
def test_arguments_describe_the_same_attention(lengths, restrictions):
    queries, keys = lengths
    query = normal(0, B, queries, H, K)
    key, value = normal(1, B, keys, H, K), normal(2, B, keys, H, K)
    real = jnp.arange(keys) < jnp.array([[keys], [3]])
    mask = real[:, None, None] if "mask" in restrictions else None
    bias = normal(3, 1, H, queries, keys) if "bias" in restrictions else None
    scale = 0.3
    fused = lambda *arrays: cudnn_attention(
        *arrays, mask, bias, scale, implementation="xla"
    )
    plain = functools.partial(attention, mask=mask, bias=bias, scale=scale)
    np.testing.assert_allclose(
        fused(query, key, value), plain(query, key, value), atol=2e-6
    )
    result, pull = jax.vjp(fused, query, key, value)
    expected, expected_pull = jax.vjp(plain, query, key, value)
    np.testing.assert_allclose(result, expected, atol=2e-6)
    for ours, theirs in zip(pull(query), expected_pull(query), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


GPU_CASES = {  # queries, keys, head width, restrictions
    "ViT-g, frozen": (257, 257, 88, ""),
    "ViT-L, frozen": (257, 257, 64, ""),
    "ViT-g, trained": (257, 257, 88, ""),
    "ViT-g at 364 pixels, trained": (677, 677, 88, ""),
    "queries read an even image": (32, 256, 64, ""),
    "OPT-2.7B": (56, 56, 80, "causal mask"),
    "T5 encoder": (44, 44, 64, "mask bias"),
    "T5 decoder": (12, 12, 64, "causal bias"),
    "T5 decoder reads": (12, 44, 64, "mask"),
}


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")
@pytest.mark.parametrize("case", GPU_CASES)
def test_the_kernel_computes_the_same_attention(case):
    queries, keys, width, restrictions = GPU_CASES[case]
    sizes = [(4, n, 8, width) for n in (queries, keys, keys)]
    arrays = [normal(n, *size, dtype=jnp.bfloat16) for n, size in enumerate(sizes)]
    mask = jnp.ones((4, 1, queries, keys), bool)
    if "mask" in restrictions:
        real = jnp.arange(keys) < jnp.array([[keys], [keys - 3], [keys // 2], [keys]])
        mask = mask & real[:, None, None]
    if "causal" in restrictions:
        mask = mask & jnp.tri(queries, keys, dtype=bool)
    bias = normal(3, 1, 8, queries, keys) if "bias" in restrictions else None
    restricted = {"mask": mask if restrictions else None, "bias": bias}

    def value_and_pull(choice, arrays):
        with fused_attention.chosen(choice):
            attend = functools.partial(attention, **restricted)
            if "frozen" in case:
                return jax.jit(attend)(*arrays), ()
            result, pull = jax.vjp(jax.jit(attend), *arrays)
            return result, pull(arrays[0].astype(result.dtype))

    result = jax.tree.leaves(value_and_pull("cudnn", arrays))
    exact = [array.astype(jnp.float32) for array in arrays]
    expected = jax.tree.leaves(value_and_pull("xla", exact))
    for ours, theirs in zip(result, expected, strict=True):
        ours = ours.astype(jnp.float32)
        error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
        assert error < 1e-2, error


def test_programs_call_the_kernel_that_fits(for_gpu):
    odd, even = (normal(0, B, n, H, K, dtype=jnp.bfloat16) for n in (5, 4))
    mask = jnp.ones((B, 1, 1, 4), bool)
    bias, key = normal(1, 1, H, 4, 4), jax.random.key(0)
    own = lambda x, **more: attention(x, x, x, **more)
    assert calls(own, odd) == calls(own, even) == ["Softmax"]
    for more in ({"mask": mask}, {"bias": bias}, {"mask": mask, "bias": bias}):
        assert calls(functools.partial(own, **more), even) == ["ScaleBiasSoftmax"]
    dropped = functools.partial(own, dropout_key=key, dropout_rate=0.1)
    assert not calls(dropped, even) and not calls(own, even.astype(jnp.float32))
    assert calls(functools.partial(own, dropout_key=key), even) == ["Softmax"]

    slope = lambda **more: jax.grad(lambda x: own(x, **more).astype(jnp.float32).sum())
    assert calls(slope(), even) == ["Softmax", "SoftmaxBackward"]
    assert len(calls(slope(mask=mask), even)) == 2
    assert calls(slope(), odd) == ["Softmax", "SoftmaxBackward"]


@pytest.mark.parametrize("length", [257, 677, 1226])
def test_training_at_the_lengths_of_a_vit_g_calls_the_kernel(for_gpu, length):
    x = jax.ShapeDtypeStruct((B, length, 16, 88), jnp.bfloat16)
    loss = lambda x: attention(x, x, x).astype(jnp.float32).sum()
    assert calls(jax.grad(loss), x) == ["Softmax", "SoftmaxBackward"]
    assert calls(loss, x) == ["Softmax"]


def test_a_frozen_tower_of_odd_length_calls_the_kernel_inside_a_gradient(for_gpu):
    config = ViTConfig(16, 2, 2, 32, image_size=32, patch_size=16)
    tower = VisionTransformer(config, jnp.bfloat16)
    images = jnp.zeros((B, 32, 32, 3), jnp.bfloat16)
    frozen = jax.eval_shape(tower.init, jax.random.key(0), images)
    assert config.num_tokens % 2

    def loss(scale, frozen):
        features = tower.apply(jax.lax.stop_gradient(frozen), images)
        return (features * scale).sum().astype(jnp.float32)

    assert calls(jax.grad(loss), jnp.bfloat16(1), frozen) == ["Softmax"]


def test_the_choice_is_of_the_context_and_compiled_programs_know_it(monkeypatch):
    monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91000)
    x = normal(0, B, 4, H, K, dtype=jnp.bfloat16)
    run = jax.jit(lambda x, bias=None: attention(x, x, x, bias=bias))
    kernel_in = lambda *args: "dot_product_attention" in str(run.trace(*args).jaxpr)
    uses_kernel = lambda: kernel_in(x)
    bias = normal(1, 1, H, 4, 4)
    assert not uses_kernel()
    with fused_attention.chosen("auto", "gpu"):
        assert uses_kernel() and not kernel_in(x, bias)
        with fused_attention.chosen("cudnn", "gpu"):
            assert kernel_in(x, bias)
        with fused_attention.chosen("xla"):
            assert not uses_kernel()
    assert not uses_kernel()


@pytest.mark.parametrize(
    "capability, has",
    [("7.5", False), ("8.0", True), ("9.0a", True), ("10.0", True), ("gfx90a", False)],
)
def test_auto_asks_a_gpu_that_has_the_kernel(capability, has, monkeypatch):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with fused_attention.chosen("auto", "gpu"):
        kernel = fused_attention.kernel_of(
            *shapes(64, (4, 4)), restricted=False, dropout=False
        )
    assert kernel == ("cudnn" if has else "xla")


@pytest.mark.parametrize(
    "choice, message",
    [
        ("cudnn", "'cudnn', which needs an NVIDIA GPU; this program is for cpu"),
        ("pallas", "'pallas', which needs a TPU; this program is for cpu"),
        ("flash", "'flash'; it must be one of xla, cudnn, pallas, auto"),
    ],
)
def test_what_cannot_be_chosen_is_said(choice, message):
    with pytest.raises(ValueError, match=message):
        fused_attention.chosen(choice)
