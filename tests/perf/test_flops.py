"""Model FLOPs: formulas against published figures, the compiled step against both.

The step is counted as it is compiled (`TrainStep.jitted`, optimizer included) from its
dead-code-eliminated jaxpr, at full size with abstract arrays.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.models import presets
from blip2_jax.models.sizes import FeaturesConfig, OPTConfig
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.parallel import sharding
from blip2_jax.perf import dot_count, flops
from blip2_jax.training.initial_params import parameter_shapes
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.state import create_state
from blip2_jax.training.step import make_train_step
from blip2_jax.training.tasks import make_task
from blip2_jax.training.train_config import default_config

GIGA = 1e9
STAGE1 = {
    "vit": "encode_image",
    "kv": "image_keys_values",
    "joint": "joint_pass",
    "itm": "multimodal_pass",
    "itg_head": "lm_logits",
    "projections": "project_(queries|text)",
    "itm_head": "itm_logits",
}
JOINT = ("query", "text", "itg")  # terms of the formula that run as one pass
STAGE2 = {
    "vit": "encode_image",
    "kv": "image_keys_values",
    "query": "query_pass|multimodal_pass",
    "projection": "language_projection",
    "language_head": r"model\.logits",
    "language_attention": r"b\w{3},b\w{3}->b\w{3}",
    "language_weights": "language_model",
}
TINY = {
    "vision": {"width": 32, "depth": 3, "heads": 2, "mlp_dim": 48, "image_size": 56},
    "qformer": {
        "width": 24,
        "depth": 3,
        "heads": 2,
        "mlp_dim": 40,
        "num_queries": 4,
        "vocab_size": 50,
        "projection_dim": 16,
        "max_positions": 32,
    },
}
TINY_OPT = {
    "kind": "opt",
    "width": 20,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 36,
    "vocab_size": 60,
    "max_positions": 64,
}
TINY_LLAMA = TINY_OPT | {"kind": "llama", "heads": 4, "kv_heads": 2, "head_width": 6}
ROWS = 4
QUESTION = 5  # question tokens of the Q-Former


def stage(name):
    """Return the stage of a preset's model; 0 for presets that are not in the paper."""
    config = presets.PRESETS[name]
    if name.startswith("shapes"):
        return 0
    return 1 if config.language_model is None else 2


def count(config, text, target=0, devices=1):
    """Count the step's FLOPs per image by term (forward, backward); also the sizes."""
    task = make_task(config)
    shapes = parameter_shapes(config, task)
    frozen = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes.frozen
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    state = jax.eval_shape(lambda t: create_state(t, optimizer), shapes.trainable)
    step = make_train_step(task, optimizer, schedule, mesh, state, frozen, seed=0)
    with jax.set_mesh(mesh):
        dots = dot_count.count_dots(
            step.jitted, state, frozen, batch(task, text, target), None
        )
    terms = STAGE1 if config.task == "stage1" else STAGE2
    sums = dot_count.flops_by_scope(dots, terms)
    assert all(value % ROWS == 0 for pair in sums.values() for value in pair)
    return {name: (f // ROWS, b // ROWS) for name, (f, b) in sums.items()}, task


def batch(task, text, target):
    """Return the shapes of a batch of `ROWS`."""
    size = task.model.config.vision.image_size
    rows = lambda dtype, *shape: jax.ShapeDtypeStruct((ROWS, *shape), dtype)
    tokens = {"image": rows(jnp.uint8, size, size, 3)}
    if task.batch_format.startswith("question_"):
        tokens["question_ids"] = rows(jnp.int32, QUESTION)
        tokens["question_mask"] = rows(bool, QUESTION)
    if task.batch_format == "encoder_decoder":
        tokens |= {"input_ids": rows(jnp.int32, text), "input_mask": rows(bool, text)}
        tokens["target_ids"] = rows(jnp.int32, target)
    else:
        tokens |= {"text_ids": rows(jnp.int32, text), "text_mask": rows(bool, text)}
    if task.batch_format != "image_text":
        tokens["target_mask"] = rows(bool, target or text)
    return tokens


def tiny(task, language_model=TINY_OPT, **objective):
    config = default_config(task).unlock()
    config.model.overrides = TINY
    if task == "stage2":
        config.model.overrides = TINY | {"language_model": language_model}
    config.objective = objective
    return config


def check_stage1(sums, terms):
    """Check forward FLOPs by formula; trained parts x3, the frozen image encoder x1.

    The image's keys and values count x2: frozen features need no gradient.
    """
    terms = dict(terms)
    terms["joint"] = sum(terms.pop(name) for name in JOINT)
    for name, forward in terms.items():
        backward = {"vit": 0, "kv": forward}.get(name, 2 * forward)
        assert sums[name] == (forward, backward), name


def check_stage2(sums, terms):
    """Check that frozen weights of the language model have no gradient: x2, not x3.

    The same holds for the image's keys and values, whose features are frozen. Both
    operands of the language model's attention depend on the queries, hence x3.
    """
    half = ("language_weights", "language_head", "kv")
    for name, forward in terms.items():
        times = 0 if name == "vit" else 1 if name in half else 2
        assert sums[name] == (forward, times * forward), name
    assert sums["other"] == (0, 0)


@pytest.mark.parametrize(
    ("vision", "size", "expected"),
    [
        (presets.EVA_VIT_G, 224, 520.7),
        (presets.EVA_VIT_G, 364, 1434),
        (presets.EVA_VIT_G, 490, 2745),
        (presets.CLIP_VIT_L, 224, 155.3),
        (presets.CLIP_VIT_L, 364, 435.8),
    ],
)
def test_vit_formula(vision, size, expected):
    flops_of_image = flops.vit(presets.at_resolution(vision, size)) / GIGA
    assert flops_of_image == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(
    "name", ["siglip_so400m_384", "dinov2_giant", "dinov2_base_registers"]
)
def test_vit_formula_counts_registers_and_gated_feed_forwards(name):
    vision = presets.ENCODERS[name]
    tower = VisionTransformer(vision)
    image = jax.ShapeDtypeStruct((1, *[vision.image_size] * 2, 3), jnp.float32)
    params = jax.eval_shape(tower.init, jax.random.key(0), image)
    dots = dot_count.count_dots(tower.apply, params, image)
    assert sum(dot.flops for dot in dots) == flops.vit(vision)


def test_stage1_formula():
    config = presets.PRESETS["pretrain"]
    original = flops.stage1(config, 32, share_kv=False, skip_unread=False)
    shared = flops.stage1(config, 32, skip_unread=False)
    figures = {"kv": 26.7, "query": 6.1, "text": 5.5, "itm": 34.9}
    for name, expected in figures.items():
        assert original[name] / GIGA == pytest.approx(expected, abs=0.05)
    itg = original["itg"] + original["itg_head"]
    assert itg / GIGA == pytest.approx(7.1, abs=0.06)
    whole = lambda terms: flops.training_step(terms, fold_norm=False)
    assert whole(original) / GIGA == pytest.approx(761, abs=0.5)
    assert whole(shared) / GIGA == pytest.approx(701, abs=0.5)
    folded = flops.training_step(shared)
    assert whole(shared) - folded == flops.cross_attention_kv(config.qformer, 257, 1408)
    assert flops.mfu_numerator(config, 32) == whole(original)
    vit_l = presets.PRESETS["pretrain_vitL"]
    assert flops.mfu_numerator(vit_l, 32) / GIGA == pytest.approx(374, abs=0.5)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("pretrain_opt2.7b", (24, 0), 1137),
        ("pretrain_opt6.7b", (24, 0), 2026),
        ("pretrain_flant5xl", (12, 12), 868),
        ("pretrain_flant5xxl", (12, 12), 1786),
    ],
)
def test_stage2_formula(name, text, expected):
    numerator = flops.mfu_numerator(presets.PRESETS[name], *text) / GIGA
    assert numerator == pytest.approx(expected, abs=0.5)


def test_unused_text_is_skipped_in_the_last_block_and_the_head():
    """Compare with a count by hand for one block of 768 with a feed-forward of 3072.

    Per row: 2 matmuls of 768 x 768 (query, output), 2 of 768 x 3072, and attention to
    all tokens.
    """
    whole = flops.stage1(presets.PRESETS["pretrain"], 32, skip_unread=False)
    ours = flops.stage1(presets.PRESETS["pretrain"], 32)
    row = lambda tokens: 2 * (2 * 768 * 768 + 2 * 768 * 3072 + 2 * tokens * 768)
    assert whole["text"] - ours["text"] == 31 * row(32)
    assert whole["itm"] - ours["itm"] == 3 * 32 * row(64)
    assert whole["itg_head"] - ours["itg_head"] == 2 * 768 * (768 + 30523)
    saved = (flops.training_step(whole) - flops.training_step(ours)) / GIGA
    assert saved == pytest.approx(4.70, abs=0.01)


OF_STAGE1 = [n for n in presets.PRESETS if stage(n) == 1]
AT_MOST = {1: 701, 2: 721}  # GFLOPs per image of ViT-g by number of devices


def at_full_width(name, depth=None):
    """Return the configuration of a preset, with another depth if one is given.

    The formulas are linear in the depth, so that two layers test a preset's sizes;
    tracing all layers takes a minute per preset.
    """
    config = default_config("stage1" if stage(name) == 1 else "stage2").unlock()
    config.model.preset = name
    if depth is not None:
        parts = ["vision", "qformer", *(["language_model"] if stage(name) == 2 else [])]
        config.model.overrides = {part: {"depth": depth} for part in parts}
    return config


@pytest.mark.parametrize(
    ("name", "depth", "devices"),
    [
        ("pretrain", None, 1),
        ("pretrain", 2, 2),
        *((name, 2, n) for name in OF_STAGE1 for n in (1, 2) if name != "pretrain"),
    ],
)
def test_stage1_step_at_full_width(name, depth, devices):
    """Every released size with 32 tokens; every term is exact.

    ViT-g: 701 - 4.7 - 6.7 GFLOPs; several devices project gathered images once more,
    forward and backward: 690 + 2 x 6.7.
    """
    config = at_full_width(name, depth)
    sums, task = count(config, text=32, devices=devices)
    terms = flops.stage1(task.model.config, 32)
    if devices > 1:
        terms["kv"] *= 2
    check_stage1(sums, terms)
    qformer = task.model.config.qformer
    itm_head = 3 * 2 * qformer.num_queries * qformer.width * 2
    assert sums["itm_head"] == (itm_head, 2 * itm_head)
    # Similarities with all texts of the batch, in both directions of ITC, each with one
    # constant operand: negligible.
    one = 2 * ROWS * qformer.num_queries * qformer.projection_dim
    assert sums["other"] == (2 * one, 2 * one)
    total = sum(map(sum, sums.values()))
    assert total == flops.training_step(terms) + 3 * itm_head + 4 * one
    if depth is None:
        assert total / GIGA == pytest.approx(689.84, abs=0.01)
        more = flops.training_step(terms | {"kv": 2 * terms["kv"]})
        several = total + more - flops.training_step(terms)
        assert several / GIGA == pytest.approx(703.18, abs=0.01)
        assert total / GIGA <= AT_MOST[1] and several / GIGA <= AT_MOST[2]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        (name, None if name == "pretrain_opt2.7b" else 2)
        for name in presets.PRESETS
        if stage(name) == 2
    ],
)
def test_stage2_step_at_full_width(name, depth):
    """Every released size with 24 tokens (encoder-decoder: half input, half target)."""
    config = at_full_width(name, depth)
    decoder_only = isinstance(presets.PRESETS[name].language_model, OPTConfig)
    text, target = (24, 0) if decoder_only else (12, 12)
    sums, task = count(config, text, target)
    terms = flops.stage2(task.model.config, text, target)
    check_stage2(sums, terms)
    total = sum(map(sum, sums.values()))
    assert total == flops.training_step(terms) + terms["language_attention"]
    if depth is None:
        assert (total + terms["kv"]) / GIGA == pytest.approx(1137, rel=2e-3)


@pytest.mark.parametrize(
    ("preset", "size", "text", "published"),
    [
        ("pretrain_opt2.7b", 364, 16, 4867),
        ("pretrain_opt6.7b", 490, 32, 10_030),
        ("pretrain", 364, 32, 4677),
    ],
)
def test_fine_tunes_with_a_trained_image_encoder(preset, size, text, published):
    config = presets.PRESETS[preset]
    vision = presets.at_resolution(config.vision, size)
    config = dataclasses.replace(config, vision=vision)
    numerator = flops.mfu_numerator(config, text, trained_vision=True) / GIGA
    assert numerator == pytest.approx(published, abs=1)


def test_a_fine_tune_reads_the_question_and_trains_the_image_encoder():
    config = tiny("stage2")
    config.frozen = ("^language_model/",)
    config.model.question_in_qformer = True
    sums, task = count(config, text=6)
    terms = flops.stage2(task.model.config, 6, question=QUESTION)
    patches = 2 * 16 * 3 * 14**2 * 32  # pixels need no gradient
    assert sums.pop("vit") == (terms["vit"], 2 * terms.pop("vit") - patches)
    assert sums.pop("kv") == (terms["kv"], 2 * terms.pop("kv"))
    check_stage2(sums, terms)


def test_the_original_algorithm_projects_keys_and_values_four_times():
    sums, task = count(tiny("stage1", share_kv=False), text=6)
    check_stage1(sums, flops.stage1(task.model.config, 6, share_kv=False))


@pytest.mark.parametrize("task", ["stage1", "stage2"])
def test_unrolled_towers_run_the_same_matmuls(task):
    scanned = tiny(task)
    unrolled = tiny(task)
    unrolled.model.scan = False
    assert count(scanned, 6)[0] == count(unrolled, 6)[0]


@pytest.mark.parametrize("language_model", [TINY_OPT, TINY_LLAMA], ids=["opt", "llama"])
def test_stage2_tiny(language_model):
    sums, task = count(tiny("stage2", language_model), 6)
    check_stage2(sums, flops.stage2(task.model.config, 6))


@pytest.mark.parametrize(
    ("task", "matrix", "term"),
    [
        ("stage1", "visual_encoder/blocks/mlp/up/kernel", "vit"),
        ("stage2", "language_model/blocks/attention/query/kernel", "language_weights"),
    ],
)
def test_the_gradient_of_one_frozen_matrix_is_detected(task, matrix, term):
    """Show that the checks above fail if one matrix is not frozen."""
    config = tiny(task)
    below = matrix.split("/", 1)[1]
    config.frozen = tuple(f"{rule}(?!{below})" for rule in config.frozen)
    sums, built = count(config, 6)
    honest, _ = count(tiny(task), 6)
    assert sums[term][1] > honest[term][1]
    sizes = built.model.config
    with pytest.raises(AssertionError):
        if task == "stage1":
            check_stage1(sums, flops.stage1(sizes, 6))
        else:
            check_stage2(sums, flops.stage2(sizes, 6))


def test_features_need_no_image_encoder():
    config = presets.Blip2Config(
        FeaturesConfig(49, 1280), dataclasses.replace(presets.QFORMER_BASE)
    )
    assert flops.stage1(config, 32)["vit"] == 0
