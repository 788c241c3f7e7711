"""Settings and array names of released language models of the Llama family.

The golden holds what the `config.json` and the index of released checkpoints say:
settings, and names with {} for the number of a block.
"""

import json
import pathlib
import re

import pytest

from blip2_jax.convert.huggingface_config import check_tables, their_config
from blip2_jax.convert.language_families.registry import BY_MODEL_TYPE, SETTINGS
from blip2_jax.convert.tables.llama import llama_rules

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "released_language_models.json"
RELEASED = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_every_array_of_a_released_model_is_read(name):
    declared = RELEASED[name]["config"]
    kind = declared["model_type"]
    check_tables(declared, pathlib.Path("config.json"), {"": SETTINGS[kind]})
    family = BY_MODEL_TYPE[kind]
    theirs = their_config(
        declared, pathlib.Path("config.json"), family.config_classes[kind]
    )
    sizes = family.read(theirs)
    depth = declared["num_hidden_layers"]
    released = {
        pattern.replace("{}", str(layer))
        for pattern in RELEASED[name]["names"]
        for layer in range(depth if "{}" in pattern else 1)
    }
    rules = llama_rules(sizes)
    read = {source for rule in rules for source in rule.names()}
    assert read <= released
    aliases = {alias for rule in rules for alias in rule.aliases}
    leftovers = "|".join(family.leftovers)
    assert not [
        source
        for source in released - read - aliases
        if not re.fullmatch(leftovers, source)
    ]
