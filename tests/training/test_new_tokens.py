"""Tokens that a run adds to the vocabularies: tables, checkpoints, exports."""

import json

import numpy as np
import pytest

from blip2_jax.cli import train
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.convert.vocabulary import NEW_ROW_NOISE, GrownTables
from blip2_jax.data.data_config import AddedTokens, tokenizer_spec
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.load import open_model
from blip2_jax.nn.trees import flatten
from blip2_jax.training.initial_params import WeightsError
from blip2_jax.training.new_tokens import fit_tables
from blip2_jax.training.setup import set_up
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import ConfigError
from tests.support.processes import SUPPORT
from tests.support.tiny_runs import make_run, tiny_config

TOKENS = ("<loc_{0..2}>", "zebra")
NAMES = ["<loc_0>", "<loc_1>", "<loc_2>", "zebra"]
pytest.importorskip("torch", reason="transformers' processors need it")
WORD, BIAS = "qformer/embeddings/word", "qformer/head/bias"
TABLE = "language_model/embeddings/token"
FROZEN = ("^visual_encoder/", "^language_model/(?!embeddings/token$|head/)")


def config_with(task, role, **init):
    """Return a tiny configuration that adds the tokens to a vocabulary."""
    config = tiny_config(task).unlock()
    config.data.added_tokens[role] = TOKENS
    config.model.overrides[role].vocab_size += len(NAMES)
    config.init.update(init)
    return config


def save(config, directory):
    """Set up a run and save its first parameters; return them by path."""
    run = set_up(config.lock(), directory)
    run.checkpoints.save(0, run.trees(), {})
    run.checkpoints.close()
    return {path: np.asarray(leaf) for path, leaf in flatten(run.parameters()).items()}


def test_new_rows_lie_near_the_mean_and_dec_stays_last():
    table = np.random.default_rng(0).normal(3, 2, (500, 8)).astype(np.float32)
    grown = GrownTables({WORD: table, TABLE: table.T, "x": table}, {WORD: 900})
    np.testing.assert_array_equal(grown["x"], table)
    rows = grown[WORD]
    np.testing.assert_array_equal(rows[:499], table[:-1])
    np.testing.assert_array_equal(rows[-1], table[-1])
    away = (rows[499:-1] - table[:-1].mean(0)) / table[:-1].std(0)
    assert abs(away.std() - NEW_ROW_NOISE) < 0.01 and abs(away.mean()) < 0.01
    head = "language_model/head/kernel"
    grown = GrownTables({head: table.T}, {head: 503})
    assert grown[head].shape == (8, 503)
    np.testing.assert_array_equal(grown[head][:, :500], table.T)
    assert "500 rows" not in grown.notes[0] or "503" in grown.notes[0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("a b",), "is no token"),
        (("",), "is no token"),
        (("x{1..2}", "x2"), "'x2' occurs twice"),
        (("x.y",), "becomes 'x y' when captions are cleaned"),
        (("<LOC>",), "becomes '<loc>'.*and capital letters"),
    ],
)
def test_tokens_that_no_text_can_hold(tokens, message):
    with pytest.raises(ValueError, match=message):
        AddedTokens(language_model=tokens)


def test_the_tokenizer_has_the_tokens_before_dec():
    plain = load_tokenizer("shapes:bert", language_model=False)
    data = {"tokenizer": {"qformer": "shapes:bert"}}
    assert tokenizer_spec(data, "qformer") == "shapes:bert"  # of an earlier run
    data["added_tokens"] = {"qformer": TOKENS}
    spec = tokenizer_spec(data, "qformer")
    tokenizer = load_tokenizer(spec, language_model=False)
    assert tokenizer.start_id == plain.start_id + len(NAMES)
    ids = tokenizer.encode_words("a zebra <loc_1>")
    assert ids[1:] == [plain.start_id + 3, plain.start_id + 1]
    assert tokenizer.decode(ids) == "a zebra <loc_1>"
    data["added_tokens"] = {"qformer": ("red",)}
    with pytest.raises(ValueError, match="'red' is a token of shapes:bert already"):
        load_tokenizer(tokenizer_spec(data, "qformer"), language_model=False)


def test_a_qformer_grows_from_a_run_and_round_trips(tmp_path):
    make_run(tmp_path / "old", "stage1", 3.0)
    old = open_model(tmp_path / "old").arrays
    config = config_with("stage1", "qformer", from_run=str(tmp_path / "old"))
    params = save(config, tmp_path / "new")
    count = len(old[WORD])
    for path in (WORD, BIAS):
        np.testing.assert_array_equal(params[path][: count - 1], old[path][:-1])
        np.testing.assert_array_equal(params[path][-1], old[path][-1])
        assert len(params[path]) == count + len(NAMES)
    # The next run that starts from it keeps the rows.
    again = config_with("stage1", "qformer", from_run=str(tmp_path / "new"))
    np.testing.assert_array_equal(save(again, tmp_path / "next")[WORD], params[WORD])

    source = open_model(tmp_path / "new")
    write_folder(source, tmp_path / "ours")
    write_huggingface(source, tmp_path / "theirs")
    for path in (tmp_path / "new", tmp_path / "ours", tmp_path / "theirs"):
        opened = open_model(path)
        assert opened.config.qformer.vocab_size == count + len(NAMES)
        np.testing.assert_array_equal(opened.arrays[WORD], params[WORD])
        tokenizer = load_tokenizer(opened.qformer_tokenizer, language_model=False)
        assert tokenizer.encode_words("zebra<loc_2>") == [count + 2, count + 1]
        assert tokenizer.start_id == count - 1 + len(NAMES)


def test_the_command_sets_the_sizes():
    command = [f"--config={SUPPORT / 'tiny_experiment.py'}"]
    command += ["--config.data.added_tokens.qformer=('<loc_{0..29}>',)"]
    parsed = train.make_parser().parse_args(command)
    config = train.requested_config(parsed)
    plain = load_tokenizer("shapes:bert", language_model=False)
    expected = plain.vocab_size + 30
    assert model_config(config.model).qformer.vocab_size == expected
    assert config.model.overrides.qformer.width == 32
    config = config_with("stage2", "language_model").unlock()
    expected = config.model.overrides.language_model.vocab_size
    config.model.overrides.language_model.vocab_size -= 2
    fit_tables(config.lock())
    assert model_config(config.model).language_model.vocab_size == expected


def test_a_table_without_rows_is_refused_with_the_number(tmp_path):
    config = config_with("stage1", "qformer")
    rows = config.model.overrides.qformer.vocab_size
    config.model.overrides.qformer.vocab_size = rows - 1
    with pytest.raises(ConfigError, match=rf"qformer\.vocab_size {rows}"):
        set_up(config.lock(), tmp_path / "run")
    # Rows are added for new tokens only.
    make_run(tmp_path / "old", "stage1")
    config = tiny_config("stage1").unlock()
    config.model.overrides.qformer.vocab_size += 1
    config.init.from_run = str(tmp_path / "old")
    with pytest.raises(WeightsError, match=r"qformer/\S+ is \("):
        set_up(config.lock(), tmp_path / "run")


def test_a_language_model_grows_if_its_table_is_trained(tmp_path):
    make_run(tmp_path / "old", "stage2", 3.0)
    write_folder(open_model(tmp_path / "old"), tmp_path / "folder")
    config = config_with("stage2", "language_model")
    config.frozen_sources.language_model = str(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"freezes language_model/embeddings/token"):
        set_up(config.lock(), tmp_path / "new")
    config.unlock().frozen = FROZEN
    params = save(config, tmp_path / "new")
    old = open_model(tmp_path / "old").arrays[TABLE]
    np.testing.assert_array_equal(params[TABLE][: len(old)], old)
    rows = len(old) + len(NAMES)
    assert len(params[TABLE]) == rows

    source = open_model(tmp_path / "new")
    write_huggingface(source, tmp_path / "theirs")
    declared = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert declared["text_config"]["vocab_size"] == rows + 1  # <image>
    for path in (tmp_path / "new", tmp_path / "theirs"):
        opened = open_model(path)
        np.testing.assert_array_equal(opened.arrays[TABLE][:rows], params[TABLE])
        tokenizer = load_tokenizer(opened.language_tokenizer, language_model=True)
        assert tokenizer.encode_words("zebra<loc_1>")[-1] == len(old) + 1
        assert tokenizer.decode([len(old) + 3, len(old)]) == "zebra<loc_0>"
