"""PEFT's folders: what is written here PEFT reads, and the other way round."""

import json

import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.model_source import expected_shapes
from blip2_jax.convert.peft_adapter import (
    LoraMatrices,
    _modules,
    read_adapter,
    write_adapter,
)
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import Phi3Config, QFormerConfig, ViTConfig
from blip2_jax.nn import low_rank
from blip2_jax.training.lora import Lora, matrix_shapes
from tests.convert.test_loaded_models import TEXTS, pictures
from tests.support import peer_models as peers

RANK, ALPHA = 3, 4.5
TARGETS = {
    # Stacked kernels; the Q-Former's; two of the three that transformers joins.
    "opt": (
        "^language_model/blocks/(attention/(query|value)|mlp/down)/kernel",
        "^qformer/layer_[01]/(attention/output|query_mlp/up)/kernel",
        "^visual_encoder/blocks/attention/(query|value|output)/kernel",
        "^language_projection/",
    ),
    "t5": (
        "^language_model/.*attention/(query|value)/kernel",
        "^language_model/encoder/blocks/mlp/gate/kernel",
        "^qformer/layer_0/cross_attention/key/kernel",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that writes a model of a family with its processor."""
    made = {}

    def make(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            peers.write_huggingface(path / "theirs", family)
            write_huggingface(open_model(path / "theirs"), path / "ours")
            made[family] = path / "ours"
        return made[family]

    return make


def random_matrices(folder, family, seed=0):
    config = open_model(folder).config
    lora = Lora(RANK, ALPHA, TARGETS[family])
    shapes = matrix_shapes(lora, expected_shapes(config), (".",))
    rng = np.random.default_rng(seed)
    arrays = {
        path: rng.normal(size=shape.shape, scale=0.3).astype(np.float32)
        for path, shape in shapes.items()
    }
    return LoraMatrices(config, arrays, RANK, ALPHA, str(folder))


def base_model(folder):
    _, transformers = peers.torch_and_transformers()
    kind = transformers.Blip2ForConditionalGeneration
    return kind.from_pretrained(folder).eval()


def their_texts(model, folder):
    _, transformers = peers.torch_and_transformers()
    processor = transformers.Blip2Processor.from_pretrained(folder)
    inputs = processor(images=pictures(), text=TEXTS, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=9, num_beams=3, do_sample=False)
    if model.config.text_config.model_type == "opt":
        ids = ids[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def our_texts(folder, **extra):
    model = blip2_jax.load(folder, **extra)
    return model.generate(pictures(), TEXTS, max_new_tokens=9, num_beams=3)


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_peft_reads_what_is_written(folders, tmp_path, family):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    folder = folders(family)
    lora = random_matrices(folder, family)
    write_adapter(lora, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(base_model(folder), tmp_path / "adapter")
    texts = their_texts(theirs, folder)
    assert our_texts(folder, lora=str(tmp_path / "adapter")) == texts
    assert our_texts(folder) != texts
    source = open_model(folder, ExtraWeights(lora=str(tmp_path / "adapter")))
    base, merged = open_model(folder).arrays, source.arrays
    adapted = low_rank.adapted_kernels(lora.arrays)
    for path in base:
        expected = base[path]
        if path in adapted:
            a, b = (lora.arrays[name] for name in low_rank.matrix_paths(path))
            expected = expected + ALPHA / RANK * (a @ b)
        np.testing.assert_allclose(
            merged[path], expected, rtol=1e-6, atol=1e-6, err_msg=path
        )


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_wrote_is_read(folders, tmp_path, rslora):
    torch, _ = peers.torch_and_transformers()
    peft = pytest.importorskip("peft", reason="peft is not installed")
    folder = folders("opt")
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        lora_dropout=0.1,
        target_modules=r".*\.(q_proj|fc2|qkv|query|language_projection)",
        rank_pattern={"qkv": 2},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 9},
        use_rslora=rslora,
    )
    theirs = peft.get_peft_model(base_model(folder), settings).eval()
    torch.manual_seed(0)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    texts = their_texts(theirs, folder)
    assert our_texts(folder, lora=str(tmp_path / "adapter")) == texts
    assert our_texts(folder) != texts
    merged = theirs.merge_and_unload().state_dict()
    source = open_model(folder, ExtraWeights(lora=str(tmp_path / "adapter")))
    for layer in range(2):
        decoder = f"language_model.model.decoder.layers.{layer}"
        vision = f"vision_model.encoder.layers.{layer}.self_attn.qkv.weight"
        for path, expected in {
            "language_model/blocks/attention/query": f"{decoder}.self_attn.q_proj",
            "language_model/blocks/mlp/down": f"{decoder}.fc2",
        }.items():
            ours = source.arrays[f"{path}/kernel"][layer]
            theirs = merged[f"{expected}.weight"].numpy().T
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        values = source.arrays["visual_encoder/blocks/attention/value/kernel"][layer]
        theirs = merged[vision].numpy()[2 * peers.WIDTH :].T
        np.testing.assert_allclose(values, theirs, rtol=1e-6, atol=1e-6)


def test_folders_that_mean_something_else_are_refused(folders, tmp_path):
    folder = folders("opt")
    adapter = tmp_path / "adapter"
    with pytest.raises(SourceError, match=r"it has no adapter_config\.json"):
        read_adapter(str(tmp_path))
    write_adapter(random_matrices(folder, "opt"), adapter, "float16")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for key, value in {"use_dora": True, "peft_type": "IA3", "bias": "all"}.items():
        changed = json.dumps(settings | {key: value})
        (adapter / "adapter_config.json").write_text(changed)
        with pytest.raises(SourceError, match=f"{key} is {value!r}; only"):
            read_adapter(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(SourceError, match=r"adapts .*, which .* lacks"):
        open_model(folders("t5"), ExtraWeights(lora=str(adapter)))
    with pytest.raises(SourceError, match="option --lora does not apply"):
        open_model("shapes", ExtraWeights(lora=str(adapter)))


def test_kernels_that_are_no_linear_layers_there_are_refused(folders, tmp_path):
    lora = random_matrices(folders("opt"), "opt")
    for path, message in {
        "visual_encoder/patch_embedding": "is no linear layer in transformers",
        "qformer/layer_0/text_mlp/up": "transformers has no qformer/layer_0/text_mlp",
    }.items():
        arrays = {f"{path}/lora_{letter}": np.ones((3, 3)) for letter in "ab"}
        other = LoraMatrices(lora.config, arrays, 3, 3.0, "")
        with pytest.raises(SourceError, match=message):
            write_adapter(other, tmp_path / "adapter")


def test_joined_kernels_of_unequal_width():
    """Phi-3 joins queries of 4 heads with keys and values of one."""
    config = Blip2Config(
        ViTConfig(16, 1, 2, 32, 28),
        QFormerConfig(16, 1, 2, 16, num_queries=2, vocab_size=24, max_positions=16),
        Phi3Config(16, 1, 4, 1, 4, 8, vocab_size=20),
    )
    rng = np.random.default_rng(0)
    blocks = "language_model/blocks/attention"
    arrays = {}
    for name, width in (("query", 16), ("value", 4)):
        paths = low_rank.matrix_paths(f"{blocks}/{name}/kernel")
        for path, shape in zip(paths, ((1, 16, 3), (1, 3, width)), strict=True):
            arrays[path] = rng.normal(size=shape).astype(np.float32)
    ((name, (a, b, _)),) = _modules(LoraMatrices(config, arrays, 3, 3.0, ""))
    assert name == "language_model.model.layers.0.self_attn.qkv_proj"
    expected = np.zeros((24, 16), np.float32)
    for name, rows in (("query", slice(0, 16)), ("value", slice(20, 24))):
        own_a, own_b = (
            arrays[path][0] for path in low_rank.matrix_paths(f"{blocks}/{name}/kernel")
        )
        expected[rows] = (own_a @ own_b).T
    np.testing.assert_allclose(b @ a, expected, rtol=1e-5, atol=1e-5)
