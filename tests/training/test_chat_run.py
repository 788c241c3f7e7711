"""A stage-2 run whose prompts are turns of a chat template."""

import json
import shutil

import numpy as np
import pytest

import blip2_jax
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.training.loop import train
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError
from tests.support.tiny_runs import tiny_config

# Of words that the tokenizer of the shapes world has.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'what is ' + m['content'] + ' ?' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def config_of(folder, length):
    shutil.copytree(tokenizer_directory("shapes:opt"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = tiny_config("stage2").unlock()
    config.data.tokenizer.language_model = str(folder)
    config.data.prompt_template = "chat"
    config.data.prompt = "red"
    config.data.max_text_length = length
    return config


def test_a_template_longer_than_the_texts(tmp_path):
    config = config_of(tmp_path / "tokenizer", 4)
    message = r"chat template alone has \d+ tokens, and data.max_text_length is 4"
    with pytest.raises(ConfigError, match=message):
        set_up(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_evaluation_and_use_have_the_same_prompts(tmp_path):
    config = config_of(tmp_path / "tokenizer", 48)
    config.steps = config.evaluation.every = 2
    config.evaluation.sources = config.data.train
    config.evaluation.max_examples = 4
    config.evaluation.batch_size = 4
    config.evaluation.max_new_tokens = 4
    assert train(config.lock(), tmp_path / "run", make_evaluator) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any(name.startswith("evaluation/") for name in json.loads(lines[-1]))
    model = blip2_jax.load(tmp_path / "run")
    tokenizer = model.language_tokenizer
    assert tokenizer.template.opening("red") == "</s>what is red ?"
    assert tokenizer.end_id != tokenizer.eos_id  # a newline without the template
    assert tokenizer.end_id != tokenizer.eos_id  # a newline without the template
    image = np.zeros((32, 32, 3), np.uint8)
    assert len(model.converse(image, ["red?", "blue?"], max_new_tokens=3)) == 2
