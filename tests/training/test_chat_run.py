"""A stage-2 run whose prompts are turns of a chat template."""

import shutil

import pytest

import blip2_jax
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
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


def test_a_loaded_run_has_the_template_of_its_training(tmp_path):
    config = config_of(tmp_path / "tokenizer", 48)
    run = set_up(config.lock(), tmp_path / "run")
    run.checkpoints.save(0, run.trees(), {})
    run.checkpoints.close()
    model = blip2_jax.load(tmp_path / "run")
    tokenizer = model.language_tokenizer
    assert tokenizer.template.opening(model.prompt) == "</s>what is red ?"
    assert tokenizer.end_id != tokenizer.eos_id  # a newline without the template
