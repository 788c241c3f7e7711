"""A plan holds what the code that trains would hold, count and send."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.parallel import sharding
from blip2_jax.perf.dot_count import count_dots
from blip2_jax.planning import report, topology
from blip2_jax.planning.activations import kept_activations
from blip2_jax.planning.estimate import Estimate, device_flops
from blip2_jax.planning.memory import Memory, Refusal, bytes_per_device, refusal
from blip2_jax.planning.plan import make_plan
from blip2_jax.planning.program import batch_shapes, training_program
from blip2_jax.planning.sweep import (
    best,
    candidates,
    largest_batch,
    nearest,
    parse_axes,
    recommendation,
    sweep,
)
from blip2_jax.training.step import loss_and_gradients
from blip2_jax.training.tasks import make_task
from tests.support import tiny_runs

FEATURES = (5, 16)  # tokens and width of an image in tiny_runs


def config(task="stage1", **mesh):
    config = tiny_runs.tiny_config(task).unlock()
    config.model.overrides.qformer.depth = 1
    config.model.overrides.qformer.dropout = 0.0
    config.batch_size = 16
    config.optimizer.warmup_steps = 4
    config.mesh.update(mesh)
    return config.lock()


@pytest.fixture(scope="module")
def plan():
    return make_plan(config(data=4, fsdp=2), topology.open_topology("cpu:8"))


def held_by_first_device(tree):
    """Bytes of real arrays, placed as the training code would place them."""

    def size(leaf):
        array = jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        return array.addressable_shards[0].data.nbytes

    return sum(map(size, jax.tree.leaves(tree)))


def test_memory_by_kind_is_what_devices_hold(plan):
    program = training_program(config(data=4, fsdp=2), jax.devices())
    memory = plan.memory
    assert memory.frozen == held_by_first_device(program.frozen)
    assert memory.trainable == held_by_first_device(program.state.trainable)
    optimizer = (program.state.optimizer, program.state.step)
    assert memory.optimizer == held_by_first_device(optimizer)
    rows = 16 // 8
    assert memory.batch == rows * (32 * 32 * 3 + 4 + 32 * 4 + 32)
    assert memory.padding == 0  # the compiler's arguments are these, to the byte
    assert memory.temporaries > 0


def test_int4_kernels_are_counted_as_the_compiler_counts_them():
    settings = config().unlock()
    settings.frozen_precision.vision = "int4"
    frozen = training_program(settings.lock(), jax.devices()).frozen
    assert any(leaf.dtype == jnp.int4 for leaf in jax.tree.leaves(frozen))
    compiled = jax.jit(lambda tree: tree).lower(frozen).compile()
    counted = compiled.memory_analysis().argument_size_in_bytes
    assert bytes_per_device(frozen) == counted


def kept(batch=16, remat="none", chunks=1):
    settings = config("stage2", data=4, fsdp=2).unlock()
    settings.model.overrides.language_model.depth = 3
    settings.batch_size, settings.model.remat = batch, remat
    settings.optimizer.accumulate = chunks
    return kept_activations(training_program(settings, jax.devices()))


def test_activations_are_what_the_backward_pass_keeps():
    """They grow with the batch, and fall where they are computed again."""
    none, dots, full = map(kept, [16] * 3, ["none", "dots", "full"])
    assert none > dots > full > 0
    assert kept(32) == 2 * none and kept(32, "full") == 2 * full
    assert kept(chunks=2) is None
    tokens, width, rows = 4 + 32, 16, 16 // 8
    assert full > 3 * rows * tokens * width * 4  # the inputs of three blocks


def test_activations_are_counted_once(plan):
    memory = plan.memory
    assert plan.to_plain()["memory"]["activations"] == memory.activations > 0
    without = dataclasses.replace(memory, activations=None)
    assert without.total == memory.total
    line = "of which stored for the backward pass, from the trace"
    assert report.report(plan).count(line) == 1
    assert line not in report.report(dataclasses.replace(plan, memory=without))
    refused = dataclasses.replace(plan, refusal=Refusal(None, 1, "too large"))
    text = report.report(refused)
    assert line not in text and line.removeprefix("of which ") in text


def test_products_are_those_of_the_loss(plan):
    program = training_program(config(data=4, fsdp=2), jax.devices())
    task = make_task(program.config)
    with jax.set_mesh(program.mesh):
        expected = count_dots(
            lambda *args: loss_and_gradients(task, *args, jax.random.key(0))[::2],
            program.state.trainable,
            program.frozen,
            program.batch,
        )
    assert plan.flops == sum(dot.flops for dot in expected) > 0


def test_products_along_tensor_divide_in_towers_alone(plan):
    program = training_program(config(data=4, tensor=2), jax.devices())
    found = count_dots(
        program.step.jitted, program.state, program.frozen, program.batch, None
    )
    mesh = {"data": 4, "fsdp": 1, "tensor": 2}
    tower = sum(dot.flops for dot in found if "visual_encoder" in dot.scope)
    rest = sum(dot.flops for dot in found) - tower
    assert tower and rest
    assert device_flops(found, mesh) == pytest.approx(tower / 8 + rest / 4)


def test_sampled_negatives_travel_by_shards(plan):
    """No device ever holds the features of the global batch: only a shard passes."""
    tokens, width = FEATURES
    shard = 16 // 8 * tokens * width * 4
    ring = [c for c in plan.collectives if c.kind == "collective-permute"]
    assert sum(c.total_bytes for c in ring if c.bytes == shard) == 7 * shard
    gathered = [c for c in plan.collectives if c.kind in ("all-gather", "all-to-all")]
    features = f"{tokens},{width}]"
    assert not [c for c in gathered if any(features in shape for shape in c.shapes)]


def batch_config(case, directory):
    """Build a configuration of each kind of batch; `directory` for what it reads."""
    settings = config("stage1" if case in ("stage1", "features") else "stage2").unlock()
    (source,) = settings.data.train
    if case.startswith("t5"):
        words = load_tokenizer("shapes:t5", language_model=True).vocab_size
        settings.model.overrides.language_model = tiny_runs.OPT | {
            "kind": "t5",
            "head_width": 8,
            "vocab_size": words,
        }
        settings.data.tokenizer.language_model = "shapes:t5"
        settings.data.max_target_length = 12 if case == "t5_targets" else 0
    if case.endswith("vqa"):
        settings.model.question_in_qformer = True
        settings.data.tokenizer.qformer = "shapes:bert"
        questions = source | {"texts": "questions", "count": 1}
        settings.data.train = ({"kind": "per_question", "of": questions},)
    if case == "features":
        tokens, width = FEATURES
        vision = {"kind": "features", "num_tokens": tokens, "width": width}
        settings.model.overrides.vision = vision
        texts = build_source(source)
        np.save(directory / "features.npy", np.ones((16, *FEATURES), np.float32))
        keys = [texts.record(index).key for index in range(16)]
        (directory / "keys.json").write_text(json.dumps(keys))
        settings.data.train = (
            {"kind": "features", "path": str(directory), "texts": source},
        )
    return settings.lock()


@pytest.mark.parametrize(
    "case", ["stage1", "stage2", "t5", "t5_targets", "vqa", "t5_vqa", "features"]
)
def test_batch_is_what_the_pipeline_makes(case, tmp_path):
    settings = batch_config(case, tmp_path)
    made = make_task(settings)
    batches = training_batches(settings.data, made.batch_format, seed=0, batch_size=16)
    real = sharding.make_global_batch(next(batches), sharding.make_mesh())
    batches.close()
    place = sharding.batch_sharding(sharding.make_mesh())
    planned = batch_shapes(settings, made, place)
    assert {name: (x.shape, x.dtype, x.sharding) for name, x in planned.items()} == {
        name: (x.shape, x.dtype, x.sharding) for name, x in real.items()
    }


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
            "memory space hbm. Used 20.31G of 15.75G hbm. Exceeded",
            20.31 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (26.56G) exceeds available HBM (15.75G).",
            26.56 * 2**30 + 40,
        ),
        ("RESOURCE_EXHAUSTED: too large", None),
    ],
)
def test_refusals_name_what_is_needed(text, needed):
    found = refusal(RuntimeError(text), Memory(10, 10, 10, 10), 16 * 2**30)
    assert found.needed == (None if needed is None else pytest.approx(needed))
    assert refusal(RuntimeError("INTERNAL: broken"), Memory(1, 1, 1, 1), 1) is None


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e:16", "cpu:0", "cpu:x", "v5p-128"]
)
def test_bad_names_are_one_sentence(name):
    with pytest.raises(ValueError, match=r"expected v4:AxBxC.* or cpu:N$"):
        topology.open_topology(name)


def test_too_many_cpus_are_one_sentence():
    with pytest.raises(ValueError, match="JAX was initialised with 8"):
        topology.open_topology("cpu:16")


def test_grid_divides_and_begins_with_the_given():
    settings = config(data=-1).unlock()
    settings.batch_size = 24
    grid = list(candidates(settings, 16, parse_axes("batch,mesh")))
    assert [grid[0].mesh[name] for name in ("data", "fsdp", "tensor")] == [16, 1, 1]
    assert {c.batch_size for c in grid[:3]} == {16, 32}
    for candidate in grid:
        devices = math.prod(candidate.mesh.values())
        assert devices == 16
        assert candidate.batch_size % (devices // candidate.mesh.tensor) == 0
    policies = {c.model.remat for c in candidates(settings, 16, ("remat",))}
    assert policies == {"none", "full", "dots"}
    message = "cannot sweep 'size'; expected some of batch, remat"
    with pytest.raises(ValueError, match=message):
        parse_axes("batch,size")


def estimated(plan, batch, seconds, *, links=0.1, total=10):
    guess = Estimate(seconds, 0.0, links, 1.0, batch / 8, 100, 1e3)
    memory = dataclasses.replace(plan.memory, temporaries=total)
    return dataclasses.replace(
        plan, batch_size=batch, estimate=guess, capacity=20e6, memory=memory
    )


def test_best_and_nearest(plan):
    fast = estimated(plan, 32, 1.0)
    as_fast, fewer_links = estimated(plan, 16, 0.5), estimated(plan, 16, 0.5, links=0.0)
    too_large = estimated(plan, 64, 0.1, total=10**9)
    plans = [too_large, fast, as_fast, fewer_links]
    assert best(plans) is fewer_links
    assert nearest(plans, 64) is fast
    assert best([too_large]) is None and nearest([too_large], 64) is None
    text = recommendation(plans, 64, ("batch",))
    assert "\nbest: cpu:8 (8 devices: data 4 x fsdp 2 x tensor 1), batch 16" in text
    assert "\nnearest to batch 64: cpu:8" in text and "batch 32" in text
    text = recommendation([too_large], 64, ("batch",))
    assert text.count("nothing fits at any batch size") == 2
    text = recommendation([too_large], 64, ("mesh", "remat"))
    assert text.count("nothing fits at this batch size") == 2
    assert recommendation([plan], 16, ()).endswith("no published rates")


@pytest.mark.parametrize("shards", [1, 8, 48])
def test_largest_batch_is_found_but_for_an_eighth(shards):
    """Whatever fits, in multiples of the shards, with few questions."""
    for limit in range(0, 64 * shards, shards // 2 or 1):
        asked = []
        fits = lambda batch, limit=limit, asked=asked: (
            asked.append(batch) or batch <= limit
        )
        found = largest_batch(fits, shards, 0, 64 * shards)
        most = limit // shards * shards
        assert 7 / 8 * most <= found <= most
        halvings = math.ceil(math.log2(64 / max(most / shards, 1)))
        assert len(asked) == len(set(asked)) <= halvings + 3
        assert not [batch for batch in asked if batch % shards or batch < shards]
    refuse = lambda batch: pytest.fail("nothing lies between")
    assert largest_batch(refuse, 8, 8, 16) == 8
    assert largest_batch(refuse, 8, 0, 8) == 0


def planner(plan, fits, frozen=10):
    """Plans without compiling: `fits` is asked for (batch, fsdp)."""

    def planned(candidate):
        fsdp, batch = candidate.mesh.fsdp, candidate.batch_size
        made = estimated(plan, batch, 1.0, total=10 if fits(batch, fsdp) else 10**9)
        memory = dataclasses.replace(made.memory, frozen=frozen)
        mesh = dict(candidate.mesh)
        return dataclasses.replace(made, mesh=mesh, memory=memory)

    return planned


def test_sweep_looks_for_the_largest_batch_of_each_mesh(plan):
    """Too large by a little ends near it, by a lot not in "nothing fits"."""
    settings = config(data=-1).unlock()
    settings.batch_size = 1024
    largest = {1: 40, 4: 500, 8: 1000, 16: 4096}
    planned = planner(plan, lambda batch, fsdp: batch <= largest[fsdp])
    plans = sweep(settings, 16, ("batch", "mesh"), planned)
    most = {}
    for found in (p for p in plans if p.fits):
        axes = found.mesh["fsdp"], found.mesh["tensor"]
        most[axes] = max(most.get(axes, 0), found.batch_size)
    # The batch is a multiple of data x fsdp: 16 shards fit 32 rows, 4 or 2 fit 40.
    replicated = {(1, 1): 32, (1, 4): 40, (1, 8): 40}
    divided = {(4, 4): 480, (8, 1): 960, (8, 2): 960, (16, 1): 1024}
    assert most == replicated | divided
    assert nearest(plans, 1024).batch_size == 1024
    alone = sweep(settings, 16, ("mesh",), planned)
    assert [p.batch_size for p in alone] == [1024] * len(most)


def test_sweep_gives_up_where_parameters_are_too_large(plan):
    never = lambda batch, fsdp: False
    batches = lambda plans: [p.batch_size for p in plans]
    settings = config(data=8)
    smaller = sweep(settings, 8, ("batch",), planner(plan, never))
    assert batches(smaller) == [16, 8]
    settings = config(data=1, fsdp=1).unlock()
    smaller = sweep(settings, 1, ("batch",), planner(plan, never))
    assert batches(smaller) == [16, 8, 4, 2, 1]
    hopeless = sweep(settings, 1, ("batch",), planner(plan, never, frozen=10**9))
    assert batches(hopeless) == [16, 8]


def test_batches_of_a_sweep_divide_into_chunks():
    settings = config(data=8).unlock()
    settings.batch_size, settings.optimizer.accumulate = 48, 2
    batches = [c.batch_size for c in candidates(settings, 8, ("batch",))]
    assert batches == [48, 16]


def test_report_says_what_was_found(plan):
    text = report.report(plan)
    assert "cpu:8 (8 devices: data 4 x fsdp 2 x tensor 1), batch 16" in text
    for kind in ("frozen", "trainable", "optimizer", "temporaries"):
        assert f"\n  {kind}" in text
    assert "collective-permute" in text and "no published rates" in text
    slow = dataclasses.replace(estimated(plan, 16, 2.0), steps=86400)
    text = report.report(slow)
    assert "1.0 images/s/chip (MFU 0.10), 2.00 days" in text
    assert "\nroofline estimate: 2.000 s per step (matmuls 2.000, HBM" in text
    assert slow.to_plain()["estimate"]["days"] == pytest.approx(2.0)


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@needs_libtpu
def test_slices_of_tpus():
    slice_ = topology.open_topology("v5e:2x4")
    assert len(slice_.devices) == 8 and slice_.peak == 197e12
    assert len(topology.open_topology("v5p:4x4x4").devices) == 64
    assert len(topology.open_topology("v4:2x2x1").devices) == 4
    assert len(topology.open_topology("v5e:1x1").devices) == 1
    with pytest.raises(ValueError, match="libtpu does not know the slice v5e:3x5"):
        topology.open_topology("v5e:3x5")


@needs_libtpu
@pytest.mark.slow
def test_a_tpu_that_is_not_there():
    """Plan a step that fits, with an estimate, and one that does not, with its size."""
    slice_ = topology.open_topology("v5e:2x2")
    small = make_plan(config("stage2"), slice_)
    assert small.fits and small.estimate.rate > 0
    assert small.memory.total < 2**30
    large = config("stage2").unlock()
    large.batch_size = 2**21
    refused = make_plan(large, slice_)
    assert refused.fits is False and refused.refusal.needed > 16 * 2**30
    assert jnp.isfinite(refused.refusal.needed)
