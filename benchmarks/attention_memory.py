"""Compile the trained image encoder and print its memory for each form of attention.

    python -m benchmarks.attention_memory --topology v5e:1x1 --size 364 --size 490
    python -m benchmarks.attention_memory --topology local

ViT-g, forward and backward, bfloat16 with fp32 parameters. A TPU need not be present
(`pip install 'jax[tpu]'`). With `--topology local` the program is compiled for the
device of this machine, such as a GPU, and timed. Temporaries are beside parameters and
gradients; traffic is the compiler's count of bytes read and written, which counts the
body of a scan once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import harness
from blip2_jax.models.presets import EVA_VIT_G, at_resolution
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.nn import fused_attention
from blip2_jax.planning.memory import Memory, refusal
from blip2_jax.planning.topology import open_topology

HEAD = (
    "pixels", "remat", "attention", "images",
    "temporaries GB", "traffic GB", "holds scores", "ms",
)  # fmt: skip
STEPS = 10  # timed


def main() -> None:
    """Compile every combination and print a table."""
    options = arguments()
    if options.topology == "local":
        device = jax.devices()[0]
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
        device = open_topology(options.topology).devices[0]
    fused = {"gpu": ["cudnn"], "tpu": ["pallas"]}.get(device.platform, [])
    print(harness.table(HEAD, []), end="")
    for size in options.size or (224, 364, 490):
        for remat in options.remat or ("none", "full"):
            for choice in options.attention or ["xla", *fused]:
                row = measure(device, size, remat, choice, options.rows, options.depth)
                print("| " + " | ".join(row) + " |", flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--topology", default="v5e:1x1", help="a TPU slice, or local")
    add("--size", type=int, action="append", help="image size; default 224, 364, 490")
    add("--remat", choices=("none", "dots", "full"), action="append")
    add("--attention", choices=fused_attention.CHOICES, action="append")
    add("--rows", type=int, default=4, help="images on the device")
    add("--depth", type=int, default=EVA_VIT_G.depth, help="blocks")
    return parser.parse_args()


def measure(
    device: Any, size: int, remat: str, choice: str, rows: int, depth: int
) -> list[str]:
    """Compile one program and return its row of the table."""
    program, abstract = encoder_gradient(device, size, remat, rows, depth)
    start = [str(size), remat, choice, str(rows)]
    try:
        with fused_attention.chosen(choice, device.platform):
            compiled = program.trace(*abstract).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(error, Memory(0, 0, 0, 0), 0)
        if refused is None:
            raise
        needed = "?" if refused.needed is None else f"{refused.needed / 1e9:.1f}"
        return [*start, f"does not fit: needs {needed} in all", "", "", ""]
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    tokens = at_resolution(EVA_VIT_G, size).num_tokens
    scores = set(re.findall(rf"f32\[[\d,]*{tokens},{tokens}\]", compiled.as_text()))
    return [
        *start,
        f"{memory.temp_size_in_bytes / 1e9:.2f}",
        f"{cost.get('bytes accessed', 0) / 1e9:.1f}",
        "yes" if scores else "no",
        f"{milliseconds(compiled, abstract):.1f}" if is_present(device) else "",
    ]


def encoder_gradient(
    device: Any, size: int, remat: str, rows: int, depth: int
) -> tuple[Any, tuple[Any, ...]]:
    """Build the gradient of a trained ViT-g and its abstract arguments."""
    config = dataclasses.replace(EVA_VIT_G, image_size=size, depth=depth)
    tower = VisionTransformer(config, jnp.bfloat16, remat=remat)
    images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.float32)
    params = jax.eval_shape(tower.init, jax.random.key(0), images)
    place = SingleDeviceSharding(device)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (params, images),
    )

    def loss(params: Any, images: jax.Array) -> jax.Array:
        features = tower.apply(params, images)
        return jnp.square(jnp.asarray(features, jnp.float32)).mean()

    return jax.jit(jax.value_and_grad(loss)), abstract


def is_present(device: Any) -> bool:
    """Return True if the device is present, and not only its compiler."""
    return device in jax.devices()


def milliseconds(compiled: Any, abstract: tuple[Any, ...]) -> float:
    """Time a compiled program on zeros."""
    arguments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    jax.block_until_ready(compiled(*arguments))
    start = time.perf_counter()
    for _ in range(STEPS):
        result = compiled(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / STEPS * 1e3


if __name__ == "__main__":
    main()
