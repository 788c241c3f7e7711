"""Every array of a source is used, equal to its twin, or named in an error."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.models import presets
from tests.support import golden_stage1, golden_stage2
from tests.support import peer_models as peers

LANGUAGE = "language_model."
# Names of one array in `Blip2ForConditionalGeneration`.
TOKEN_TABLES = {
    "opt": (
        f"{LANGUAGE}model.decoder.embed_tokens.weight",
        f"{LANGUAGE}lm_head.weight",
    ),
    "t5": (
        f"{LANGUAGE}shared.weight",
        f"{LANGUAGE}encoder.embed_tokens.weight",
        f"{LANGUAGE}decoder.embed_tokens.weight",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folders of an OPT and a T5 model."""
    root = tmp_path_factory.mktemp("names")
    for family in TOKEN_TABLES:
        peers.write_huggingface(root / family, family)
    return root


def folder_with(written, target, family, change):
    """Copy a folder; `change` edits its arrays."""
    target.mkdir()
    arrays = load_file(written / family / "model.safetensors")
    config = (written / family / "config.json").read_text()
    (target / "config.json").write_text(config)
    change(arrays)
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
    return target


def tables(source):
    """Read the token table, and the head if there is one."""
    paths = ("language_model/embeddings/token", "language_model/head/kernel")
    return [source.arrays[path] for path in paths if path in source.arrays]


def keep_only(arrays, family, name):
    usual = TOKEN_TABLES[family][0]
    arrays[name] = arrays.pop(usual)


@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family, names in TOKEN_TABLES.items() for name in names],
)
def test_one_name_of_a_shared_array_is_enough(
    written, tmp_path, family, name, tied_head
):
    """Safetensors' `save_model` keeps any one of the names."""
    head = f"{LANGUAGE}lm_head.weight"

    def change(arrays):
        if tied_head and family == "t5":
            arrays.pop(head, None)
        keep_only(arrays, family, name)

    expected = load_file(written / family / "model.safetensors")
    table = expected[TOKEN_TABLES[family][0]]
    source = open_model(folder_with(written, tmp_path / "x", family, change))
    found = tables(source)
    np.testing.assert_array_equal(found[0], table)
    if family == "t5":
        kernel = table if tied_head or head not in expected else expected[head]
        np.testing.assert_array_equal(found[1], kernel.T)


def test_the_head_of_a_tied_t5_is_enough(written, tmp_path):
    table = load_file(written / "t5" / "model.safetensors")[TOKEN_TABLES["t5"][0]]

    def change(arrays):
        arrays.pop(f"{LANGUAGE}lm_head.weight", None)
        arrays[f"{LANGUAGE}lm_head.weight"] = arrays.pop(TOKEN_TABLES["t5"][0])

    source = open_model(folder_with(written, tmp_path / "x", "t5", change))
    for found, expected in zip(tables(source), (table, table.T), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("family", TOKEN_TABLES)
def test_copies_must_be_equal(written, tmp_path, family):
    usual, *others = TOKEN_TABLES[family]
    for number, name in enumerate(others):
        for added in (0, 1):

            def change(arrays, name=name, added=added):
                arrays[name] = arrays[usual].copy()
                arrays[name][-1] += added

            target = tmp_path / f"{number}{added}"
            source = open_model(folder_with(written, target, family, change))
            if not added:
                tables(source)
                continue
            with pytest.raises(SourceError, match="differ") as error:
                tables(source)
            assert usual in str(error.value) and name in str(error.value)


def test_no_name_of_a_shared_array(written, tmp_path):
    def change(arrays):
        del arrays[TOKEN_TABLES["opt"][0]]

    folder = folder_with(written, tmp_path / "x", "opt", change)
    with pytest.raises(SourceError, match=r"embeddings/token \(no .*embed_tokens"):
        open_model(folder)


def lavis(tmp_path, arrays, config, **more):
    path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    sizes = peers.write_sizes(tmp_path / "sizes.json", config)
    return open_model(path, ExtraWeights(sizes=sizes, **more))


def test_names_of_lavis(tmp_path):
    """The word table of the Q-Former also is the decoder of its head."""
    arrays = load_file(golden_stage1.STAGE1 / "weights.safetensors")
    table = "Qformer.bert.embeddings.word_embeddings.weight"
    decoder = "Qformer.cls.predictions.decoder.weight"
    expected = arrays[table]
    one = {k: v for k, v in arrays.items() if k != table} | {decoder: expected}
    source = lavis(tmp_path, one, golden_stage1.config())
    np.testing.assert_array_equal(source.arrays["qformer/embeddings/word"], expected)
    two = {**arrays, decoder: expected + 1}
    source = lavis(tmp_path, two, golden_stage1.config())
    with pytest.raises(SourceError, match=r"word_embeddings.*decoder.weight.*differ"):
        source.arrays["qformer/embeddings/word"]


def test_a_lavis_file_and_its_language_model_have_the_same_table(tmp_path):
    """LAVIS saves an alias of the table of a language model that it leaves out."""
    name = "stage2_opt_a"
    arrays, prefix = dict(golden_stage2.source(name)), "opt_model."
    tower = {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }
    tower.pop("lm_head.weight", None)
    alias, path = f"{prefix}lm_head.weight", "language_model/embeddings/token"
    table = tower["model.decoder.embed_tokens.weight"]
    rest = {k: v for k, v in arrays.items() if not k.startswith(prefix)}
    file = str(peers.write_pickle(tmp_path / "opt.pth", tower, wrapper=""))
    for added in (0, 1):
        source = lavis(
            tmp_path,
            {**rest, alias: table + added},
            golden_stage2.config(name),
            language_model=file,
        )
        if added:
            with pytest.raises(SourceError, match="differ"):
                source.arrays[path]
        else:
            np.testing.assert_array_equal(source.arrays[path], table)
            assert source.elsewhere == ("language_model/",)


def test_a_group_that_lacks_an_array(written, tmp_path):
    """A parameter of stacked layers is not left out because of one layer."""
    lacking = f"{LANGUAGE}model.decoder.layers.1.fc1.weight"
    folder = folder_with(written, tmp_path / "x", "opt", lambda a: a.pop(lacking))
    with pytest.raises(SourceError, match=rf"lacks 1 arrays of a group: .*{lacking}"):
        open_model(folder)


def test_integers_are_not_weights(written, tmp_path):
    name = "query_tokens"

    def change(arrays):
        arrays[name] = arrays[name].astype(np.int8)

    folder = folder_with(written, tmp_path / "x", "opt", change)
    with pytest.raises(SourceError, match="no floating-point numbers: query_tokens is"):
        open_model(folder)


def test_a_shape_that_no_rule_reads(written, tmp_path):
    name = "vision_model.embeddings.patch_embedding.weight"

    def change(arrays):
        arrays[name] = arrays[name][0, 0]

    folder = folder_with(written, tmp_path / "x", "opt", change)
    with pytest.raises(SourceError, match=f"cannot be made from {name} in .*14, 14"):
        open_model(folder)


def test_an_array_that_the_index_does_not_name(tmp_path):
    peers.write_huggingface(tmp_path / "x", "opt", shard="40KB")
    index = tmp_path / "x" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"].pop("query_tokens")
    index.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=f"{shard} in .* holds query_tokens, which"):
        CheckpointFiles(tmp_path / "x")


SIZES = {
    "qformer_config__intermediate_size": (32, 24),
    "vision_config__hidden_size": (32, 16),
    "vision_config__image_size": (56, 28),
    "vision_config__num_hidden_layers": (5, 3),
    "text_config__num_hidden_layers": (10**7, 2),
    "text_config__vocab_size": (50272, 453),
    "qformer_config__cross_attention_frequency": (1, 2),
    "num_query_tokens": (5, 4),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_wrong_size_is_one_fact(written, tmp_path, name):
    """The message has the setting and both numbers, and not every array it changes."""
    declared, actual = SIZES[name]
    folder = folder_with(written, tmp_path / "x", "opt", lambda arrays: None)
    content = json.loads((folder / "config.json").read_text())
    *section, key = name.split("__")
    (content[section[0]] if section else content)[key] = declared
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(SourceError) as error:
        open_model(folder)
    message = str(error.value)
    assert f"{name.replace('__', '.')} " in message and str(declared) in message
    assert len(message.split("config.json")[1]) < 250
    if key not in ("image_size", "cross_attention_frequency"):
        assert message.endswith(f"the weights have {actual}")


def test_a_wrong_size_of_a_lavis_file_is_named(tmp_path):
    arrays = dict(golden_stage2.source("stage2_opt_a"))
    config = golden_stage2.config("stage2_opt_a")
    sizes = presets.to_plain(config)
    width, depth = config.qformer.mlp_dim, config.qformer.depth
    for key, value, message in (
        ("mlp_dim", 2 * width, f"a size is {width} where the model has {2 * width}: "),
        ("depth", depth + 2, f"has {depth} layers where the model has {depth + 2}: "),
    ):
        other = json.loads(json.dumps(sizes))
        other["qformer"][key] = value
        (tmp_path / "sizes.json").write_text(json.dumps(other))
        path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
        with pytest.raises(SourceError, match=message):
            open_model(path, ExtraWeights(sizes=str(tmp_path / "sizes.json")))
