"""Configuration keys named in the documentation exist."""

import re

import pytest
from ml_collections import ConfigDict

from blip2_jax.evaluation.eval_config import default_evaluation
from blip2_jax.losses.image_text_contrast import ContrastOptions
from blip2_jax.losses.language_model import LanguageModelOptions
from blip2_jax.losses.stage1 import Stage1Options
from blip2_jax.losses.stage2 import Stage2Options
from blip2_jax.training.train_config import TASKS, default_config
from tests.support.documentation import PAGES, ROOT

FILES = ("json", "py", "safetensors", "pt")  # suffixes of files, not keys
KEYS = (
    re.compile(r"(?<![\w.])config\.([a-z][\w.]*\w)"),
    re.compile(
        r"`((?:model|objective|optimizer|data|evaluation|init|checkpoint|mesh)"
        r"\.[a-z][\w.]*\w)\b[^`/]*`"
    ),
)
OPTIONS = (Stage1Options, Stage2Options, ContrastOptions, LanguageModelOptions)


def known(key: str) -> bool:
    """Test if a training run or an evaluation has this key."""
    section, _, name = key.partition(".")
    if section == "objective" and name:
        return any(name in options.__dataclass_fields__ for options in OPTIONS)
    configs = [*map(default_config, TASKS), default_evaluation()]
    return any(has_key(config, key) for config in configs)


def has_key(config: ConfigDict, key: str) -> bool:
    """Test if a configuration has a dotted key."""
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_exist(page):
    text = page.read_text()
    keys = {key for pattern in KEYS for key in pattern.findall(text)}
    keys = {key for key in keys if key.rpartition(".")[2] not in FILES}
    unknown = {key for key in keys if not known(key)}
    assert not unknown, f"{page.name} names {unknown}"
