"""A run whose data do not fit its model stops before anything is written."""

import json

import pytest
from ml_collections import ConfigDict

from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError
from tests.support import tiny_experiment


def config_of(task, **values):
    config = tiny_experiment.get_config(task).unlock()
    config.data.workers = 0
    for name, value in values.items():
        part, config_part = name.split("__"), config
        for each in part[:-1]:
            config_part = config_part[each]
        config_part[part[-1]] = value
    return config.lock()


def words(path, size):
    """Write a BERT vocabulary of `size` words."""
    path.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = [*special, *(f"word{n}" for n in range(size - len(special)))]
    (path / "vocab.txt").write_text("\n".join(lines) + "\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    return str(path)


def test_a_vocabulary_of_another_size(tmp_path):
    """Ids beyond the table would read NaN."""
    tokenizer = words(tmp_path / "words", 400)
    config = config_of("stage1", data__tokenizer__qformer=tokenizer)
    match = r"tokenizer.qformer=.*401 tokens.* 200 rows"
    with pytest.raises(ConfigError, match=match):
        set_up(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_language_model_with_fewer_rows(tmp_path):
    config = config_of("opt").unlock()
    sizes = config.model.overrides.language_model
    sizes["vocab_size"] = 300
    config.model.overrides.language_model = ConfigDict(sizes)
    with pytest.raises(ConfigError, match=r"452 tokens.* 300 rows"):
        set_up(config.lock(), tmp_path / "run")


@pytest.mark.parametrize("task", ["stage1", "opt"])
def test_a_text_longer_than_the_positions(tmp_path, task):
    config = config_of(task, data__max_text_length=3000)
    with pytest.raises(ConfigError, match=r"max_text_length.* 3000.* has \d+"):
        set_up(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "values", "match"),
    [
        ("stage1", {"size": 48}, r"data\.image\.size is 48; it must be 32"),
        ("opt", {"size": 48}, r"data\.image\.size is 48; it must be 32"),
        ("opt", {"num_shards": 3}, r"num_shards is 3; .* 8 rows .*batch_size=8 gives"),
        (
            "stage1",
            {"num_shards": 4, "itg_every": 4},
            r"num_shards is 4; .* 2 rows .*batch_size=8 with .*itg_every=4 gives",
        ),
    ],
)
def test_a_step_that_cannot_be_traced(tmp_path, task, values, match):
    config = config_of(task).unlock()
    for key, value in values.items():
        node = config.data.image if key == "size" else config.objective
        node[key] = value
    with pytest.raises(ConfigError, match=match):
        set_up(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_divide_the_rows_of_losses_that_are_computed(tmp_path):
    config = config_of("stage1").unlock()
    config.objective = ConfigDict({"itm_every": 4, "itm_weight": 0.0, "num_shards": 8})
    set_up(config.lock(), tmp_path / "run").batches.close()
