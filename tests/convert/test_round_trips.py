"""There and back, bit for bit: LAVIS's files and Hugging Face's folders."""

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

# What a sub-configuration may say differently: names and what nothing here reads.
HARMLESS = {"dtype", "architectures", "init_std", "initializer_factor", "prefix"}


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
    beside = ExtraWeights(sizes=peers.write_sizes(tmp_path / "sizes.json", config))
    write_folder(open_model(path, beside), tmp_path / "ours")
    write_lavis(read_folder(tmp_path / "ours"), tmp_path / "back.pth")
    peers.assert_same(CheckpointFiles(tmp_path / "back.pth"), arrays)


@pytest.mark.parametrize("name", golden_stage2.NAMES)
def test_lavis_without_its_frozen_halves(tmp_path, name):
    """A released stage-2 file holds what was trained, and the second names of a
    frozen table; towers come from their own files, and do not go back."""
    arrays, config = lavis_source(name)
    family = "opt" if "opt" in name else "t5"
    prefixes = ("visual_encoder.", f"{family}_model.")
    for prefix in prefixes:
        inside = [name for name in arrays if name.startswith(prefix)]
        tower = {name.removeprefix(prefix): arrays[name] for name in inside}
        peers.write_pickle(tmp_path / f"{prefix}pth", tower, wrapper="")
    vision, language_model = (str(tmp_path / f"{prefix}pth") for prefix in prefixes)
    aliases = {alias for rule in golden_stage2.rules(name) for alias in rule.aliases}
    kept = {
        k: a for k, a in arrays.items() if not k.startswith(prefixes) or k in aliases
    }
    path = peers.write_pickle(tmp_path / "theirs.pth", kept)
    beside = ExtraWeights(
        vision=vision,
        language_model=language_model,
        sizes=peers.write_sizes(tmp_path / "sizes.json", config),
    )
    write_folder(open_model(path, beside), tmp_path / "ours")
    opened = read_folder(tmp_path / "ours")
    expected = trees.flatten(golden_stage2.params(name))
    peers.assert_same(opened.arrays, expected)
    write_lavis(opened, tmp_path / "back.pth")
    peers.assert_same(CheckpointFiles(tmp_path / "back.pth"), kept)
    write_lavis(opened, tmp_path / "complete.pth", complete=True)
    peers.assert_same(CheckpointFiles(tmp_path / "complete.pth"), arrays)


@pytest.mark.parametrize("dtype", peers.DTYPES)
@pytest.mark.parametrize("family", ["opt", "t5", "retrieval"])
def test_huggingface(tmp_path, family, dtype):
    _, transformers = peers.torch_and_transformers()
    peers.write_huggingface(tmp_path / "theirs", family, dtype, shard="40KB")
    source = CheckpointFiles(tmp_path / "theirs")
    write_folder(open_model(tmp_path / "theirs"), tmp_path / "ours")
    write_huggingface(read_folder(tmp_path / "ours"), tmp_path / "back")
    peers.assert_same(CheckpointFiles(tmp_path / "back"), source)

    kind = source.config["architectures"][0]
    theirs, info = getattr(transformers, kind).from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values()), info
    loaded = theirs.state_dict()
    for name in source:  # a head of its own is not tied to the token table
        array = source[name].astype(np.float32)
        np.testing.assert_array_equal(loaded[name].float().numpy(), array, name)
    before = transformers.AutoConfig.from_pretrained(tmp_path / "theirs").to_dict()
    after = theirs.config.to_dict()
    assert str(theirs.vision_model.dtype) == f"torch.{dtype}"
    parts = ["vision_config", "qformer_config"]
    for part in parts if family == "retrieval" else [*parts, "text_config"]:
        differ = {k for k in after[part] if after[part][k] != before[part].get(k)}
        assert differ <= HARMLESS


def test_a_key_bias_is_kept(tmp_path):
    """Their joined bias may hold what the released models do not have."""
    peers.write_huggingface(tmp_path / "theirs", "opt", key_bias=True)
    opened = open_model(tmp_path / "theirs")
    assert np.any(opened.arrays["visual_encoder/blocks/attention/key/bias"])
    write_huggingface(opened, tmp_path / "back")
    peers.assert_same(
        CheckpointFiles(tmp_path / "back"), CheckpointFiles(tmp_path / "theirs")
    )


def test_lavis_and_huggingface_meet(tmp_path):
    """LAVIS -> Hugging Face -> LAVIS, neither of which has all of the other's."""
    arrays, config = lavis_source("stage2_opt_a")
    path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    beside = ExtraWeights(
        sizes=peers.write_sizes(tmp_path / "sizes.json", config),
        language_tokenizer="shapes:opt",
    )
    write_huggingface(open_model(path, beside), tmp_path / "middle")
    write_lavis(open_model(tmp_path / "middle"), tmp_path / "back.pth")
    found = dict(CheckpointFiles(tmp_path / "back.pth"))
    table = "opt_model.model.decoder.embed_tokens.weight"
    for name in (table, "opt_model.lm_head.weight"):  # a row more, for <image>
        found[name] = found[name][: len(arrays[table])]
    buffer = [lavis.POSITION_IDS]
    peers.assert_same(found, arrays, ignore=buffer)
