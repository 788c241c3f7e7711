"""The command that trains a vocabulary: tars, a configuration, the shapes world."""

import pytest

from blip2_jax.cli import train_vocabulary
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support.generated_data import tars_spec


def test_vocabulary_of_tars(tmp_path):
    tars = tars_spec(tmp_path, count=6)["paths"]
    train_vocabulary.main([str(tmp_path / "out"), tars, "--size", "300"])
    tokenizer = load_tokenizer(str(tmp_path / "out"), language_model=True)
    assert 260 < tokenizer.vocab_size <= 300


def test_shapes_tokenizers(tmp_path):
    train_vocabulary.main([str(tmp_path), "--shapes"])
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "opt", "t5"}


@pytest.mark.parametrize("sources", [(), ("a.tar", "--shapes")])
def test_one_source_of_texts(tmp_path, capsys, sources):
    assert train_vocabulary.main([str(tmp_path), *sources]) == 2
    assert "expected one of: tars, --config, --shapes" in capsys.readouterr().err
