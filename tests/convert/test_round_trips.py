"""Round trips of LAVIS files and Hugging Face folders are bit-exact."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.convert.native_folder import read_folder, write_folder
from blip2_jax.convert.tables import lavis
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.nn import trees
from tests.support import golden_stage1, golden_stage2
from tests.support import peer_models as peers

# Fields of a sub-configuration that may differ: nothing reads them.
HARMLESS = {
    "dtype",
    "architectures",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "prefix",
}


def lavis_source(name):
    if name == "stage1_a":
        source = load_file(golden_stage1.STAGE1 / "weights.safetensors")
        return source, golden_stage1.config()
    return dict(golden_stage2.source(name)), golden_stage2.config(name)


@pytest.mark.parametrize("dtype", peers.DTYPES)
@pytest.mark.parametrize("name", ["stage1_a", *golden_stage2.NAMES])
def test_lavis(tmp_path, name, dtype):
    arrays, config = lavis_source(name)
    arrays = peers.cast(arrays, dtype)
    path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    extra = ExtraWeights(sizes=peers.write_sizes(tmp_path / "sizes.json", config))
    write_folder(open_model(path, extra), tmp_path / "ours")
    write_lavis(read_folder(tmp_path / "ours"), tmp_path / "back.pth")
    peers.assert_same(CheckpointFiles(tmp_path / "back.pth"), arrays)


@pytest.mark.parametrize("name", golden_stage2.NAMES)
def test_lavis_without_its_towers(tmp_path, name):
    """Towers come from their own files and are not written back.

    A released stage-2 file holds trained arrays and the alias of a frozen token table.
    """
    arrays, config = lavis_source(name)
    family = "opt" if "opt" in name else "t5"
    prefixes = ("visual_encoder.", f"{family}_model.")
    for prefix in prefixes:
        tower = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        peers.write_pickle(tmp_path / f"{prefix}pth", tower, wrapper="")
    vision, language_model = (str(tmp_path / f"{prefix}pth") for prefix in prefixes)
    aliases = {alias for rule in golden_stage2.rules(name) for alias in rule.aliases}
    in_file = {
        k: a for k, a in arrays.items() if not k.startswith(prefixes) or k in aliases
    }
    path = peers.write_pickle(tmp_path / "theirs.pth", in_file)
    extra = ExtraWeights(
        vision=vision,
        language_model=language_model,
        sizes=peers.write_sizes(tmp_path / "sizes.json", config),
    )
    write_folder(open_model(path, extra), tmp_path / "ours")
    source = read_folder(tmp_path / "ours")
    expected = trees.flatten(golden_stage2.params(name))
    peers.assert_same(source.arrays, expected)
    write_lavis(source, tmp_path / "back.pth")
    peers.assert_same(CheckpointFiles(tmp_path / "back.pth"), in_file)
    write_lavis(source, tmp_path / "complete.pth", complete=True)
    peers.assert_same(CheckpointFiles(tmp_path / "complete.pth"), arrays)


@pytest.mark.parametrize("dtype", peers.DTYPES)
@pytest.mark.parametrize("family", ["opt", "t5", "llama", "retrieval"])
def test_huggingface(tmp_path, family, dtype):
    _, transformers = peers.torch_and_transformers()
    peers.write_huggingface(tmp_path / "theirs", family, dtype, shard="40KB")
    source = CheckpointFiles(tmp_path / "theirs")
    write_folder(open_model(tmp_path / "theirs"), tmp_path / "ours")
    write_huggingface(read_folder(tmp_path / "ours"), tmp_path / "back")
    peers.assert_same(CheckpointFiles(tmp_path / "back"), source)

    if family == "t5":  # by this, transformers before 5 tells v1.1 from the first T5
        text_config = CheckpointFiles(tmp_path / "back").config["text_config"]
        assert text_config["tie_word_embeddings"] is False
    kind = source.config["architectures"][0]
    theirs, info = getattr(transformers, kind).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values()), info
    loaded = theirs.state_dict()
    for name in source:  # an untied head must keep its own values
        array = source[name].astype(np.float32)
        np.testing.assert_array_equal(loaded[name].float().numpy(), array, name)
    if family == "t5":
        assert theirs.language_model.config.scale_decoder_outputs is False
    before = transformers.AutoConfig.from_pretrained(tmp_path / "theirs").to_dict()
    after = theirs.config.to_dict()
    assert str(theirs.vision_model.dtype) == f"torch.{dtype}"
    parts = ["vision_config", "qformer_config"]
    for part in parts if family == "retrieval" else [*parts, "text_config"]:
        differing = {k for k in after[part] if after[part][k] != before[part].get(k)}
        assert differing <= HARMLESS


def test_a_key_bias_is_kept(tmp_path):
    """The joined bias may hold key biases, which the released models lack."""
    peers.write_huggingface(tmp_path / "theirs", "opt", key_bias=True)
    source = open_model(tmp_path / "theirs")
    assert np.any(source.arrays["visual_encoder/blocks/attention/key/bias"])
    write_huggingface(source, tmp_path / "back")
    peers.assert_same(
        CheckpointFiles(tmp_path / "back"), CheckpointFiles(tmp_path / "theirs")
    )


def test_lavis_through_huggingface(tmp_path):
    """LAVIS -> Hugging Face -> LAVIS, although each format lacks some arrays."""
    arrays, config = lavis_source("stage2_opt_a")
    path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    extra = ExtraWeights(
        sizes=peers.write_sizes(tmp_path / "sizes.json", config),
        language_tokenizer="shapes:opt",
    )
    write_huggingface(open_model(path, extra), tmp_path / "middle")
    write_lavis(open_model(tmp_path / "middle"), tmp_path / "back.pth")
    back = dict(CheckpointFiles(tmp_path / "back.pth"))
    table = "opt_model.model.decoder.embed_tokens.weight"
    for name in (table, "opt_model.lm_head.weight"):  # one row is added for <image>
        back[name] = back[name][: len(arrays[table])]
    peers.assert_same(back, arrays, ignore=[lavis.POSITION_IDS])
