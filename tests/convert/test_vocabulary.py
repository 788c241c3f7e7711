"""Tokenizers, token tables and lengths are compared before anything compiles."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.convert.weights import open_arrays
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.losses.stage1 import Stage1Options, decoder_input_ids
from blip2_jax.models import presets
from tests.support import golden_stage1
from tests.support import peer_models as peers

ITG = Stage1Options()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer(path, size):
    """Write a BERT vocabulary of `size` words, without [DEC]."""
    path.mkdir()
    words = [*SPECIAL, *(f"word{n}" for n in range(size - len(SPECIAL)))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    return str(path)


def config_with(qformer=191, language_model=None):
    shapes = presets.PRESETS["shapes_opt" if language_model else "shapes"]
    sizes = dataclasses.replace(shapes.qformer, vocab_size=qformer)
    config = dataclasses.replace(shapes, qformer=sizes)
    if language_model:
        opt = dataclasses.replace(shapes.language_model, vocab_size=language_model)
        config = dataclasses.replace(config, language_model=opt)
    return config


def test_a_tokenizer_of_another_size(tmp_path):
    """Ids beyond the table are an error that has both sizes; spare rows are none."""
    for size in (60, 190):
        spec = bert_tokenizer(tmp_path / str(size), size)
        check_vocabulary(load_tokenizer(spec, language_model=False), config_with())
    tokenizer = load_tokenizer("shapes:bert", language_model=False)
    with pytest.raises(ValueError, match=r"Q-Former has 191 tokens.* 120 rows.*191"):
        check_vocabulary(tokenizer, config_with(120))
    tokenizer = load_tokenizer("shapes:opt", language_model=True)
    check_vocabulary(tokenizer, config_with(language_model=500))
    with pytest.raises(ValueError, match=r"language model has 452 tokens.* 451 rows"):
        check_vocabulary(tokenizer, config_with(language_model=451))


def test_load_compares_them(tmp_path):
    peers.write_huggingface(tmp_path / "theirs", "retrieval")
    (tmp_path / "other").mkdir()
    tokenizer = bert_tokenizer(tmp_path / "other" / "words", 300)
    with pytest.raises(ValueError, match=r"301 tokens.* 191 rows"):
        blip2_jax.load(tmp_path / "theirs", qformer_tokenizer=tokenizer)


def padded(source, target, extra):
    """Copy a Hugging Face folder with more rows in its token tables."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    arrays = load_file(source / "model.safetensors")
    for name, array in arrays.items():
        if name.endswith(("embed_tokens.weight", "shared.weight", "lm_head.weight")):
            rows = np.full((extra, array.shape[1]), 7, array.dtype)
            arrays[name] = np.concatenate([array, rows])
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((source / "config.json").read_text())
    content["text_config"]["vocab_size"] += extra
    (target / "config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("family", ["opt", "t5"])
def test_tables_with_spare_rows(tmp_path, family, native):
    """Weights padded to a round number of rows, beside sizes that do not count them."""
    peers.write_huggingface(tmp_path / "theirs", family)
    config = open_model(tmp_path / "theirs").config
    expected = open_arrays(tmp_path / "theirs", config)
    folder = padded(tmp_path / "theirs", tmp_path / "padded", 32)
    if native:
        write_folder(open_model(folder), tmp_path / "native")
        folder = tmp_path / "native"
    found = open_arrays(folder, config)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], path)
    rows = config.language_model.vocab_size
    assert f"{rows + 32:,} rows; the first {rows:,} are read" in found.notes[0]
    # The padded model itself keeps its rows.
    assert open_model(folder).config.language_model.vocab_size == rows + 32


def bert(words=None):
    """Return the BERT in the golden model, with another number of words."""
    arrays = {
        name.removeprefix("Qformer."): array
        for name, array in load_file(
            golden_stage1.STAGE1 / "weights.safetensors"
        ).items()
        if name.startswith("Qformer.")
        and not any(part in name for part in ("crossatt", "_query", "position_ids"))
    }
    for name, array in arrays.items():
        ends = ("word_embeddings.weight", "predictions.bias", "decoder.weight")
        if name.endswith((*ends, "decoder.bias")):
            arrays[name] = np.resize(array, (words, *array.shape[1:]))
    return arrays


@pytest.mark.parametrize("difference", [6, 0])
def test_a_bert_of_another_vocabulary(tmp_path, difference):
    config = golden_stage1.config()
    rows = config.qformer.vocab_size
    words = rows + difference
    save_file(bert(words), tmp_path / "bert.safetensors")
    with pytest.raises(SourceError, match=f"{words} words.* {rows} rows.* {words + 1}"):
        open_arrays(tmp_path / "bert.safetensors", config)


def test_a_bert_of_the_same_vocabulary(tmp_path):
    config = golden_stage1.config()
    save_file(bert(config.qformer.vocab_size - 1), tmp_path / "bert.safetensors")
    arrays = open_arrays(tmp_path / "bert.safetensors", config)
    assert len(arrays["qformer/embeddings/word"]) == config.qformer.vocab_size


def test_writing_begins_with_the_row_that_training_puts_first(tmp_path):
    """[DEC] is the last row, also if the tokenizer has fewer tokens than rows."""
    peers.write_huggingface(tmp_path / "theirs", "retrieval")
    spec = bert_tokenizer(tmp_path / "words", 60)
    model = blip2_jax.load(tmp_path / "theirs", qformer_tokenizer=spec)
    model._absent = ()  # the folder has no head; the ids are made before it is used
    (ids,) = model._prompt_arrays([""])
    assert ids[0, 0] == model.model.config.qformer.vocab_size - 1 == 190
    start = decoder_input_ids(model.model, {"text_ids": jnp.ones((1, 3), int)}, ITG)
    assert start[0, 0] == ids[0, 0]


def test_a_text_branch_brings_its_vocabulary(tmp_path):
    """A released stage-2 folder declares 30522 words, a text branch has 30523."""
    peers.write_huggingface(tmp_path / "stage1", "retrieval")
    peers.write_huggingface(tmp_path / "stage2", "opt")
    file = tmp_path / "stage2" / "config.json"
    content = json.loads(file.read_text())
    content["qformer_config"]["vocab_size"] = 190
    file.write_text(json.dumps(content))
    extra = ExtraWeights(text_branch=str(tmp_path / "stage1"))
    source = open_model(tmp_path / "stage2", extra)
    assert source.config.qformer.vocab_size == 191
    assert source.arrays["qformer/embeddings/word"].shape[0] == 191
    write_huggingface(open_model(tmp_path / "stage2"), tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["qformer_config"]["vocab_size"] == 190
