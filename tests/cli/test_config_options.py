"""`--config` by name and by path, and `--config.KEY=VALUE` in all its forms."""

import pytest

from blip2_jax.cli.config_options import (
    ConfigParser,
    config_summary,
    list_configs,
    load_config,
    read_config_option,
)
from blip2_jax.cli.errors import UsageError


def read(*arguments):
    return read_config_option(ConfigParser("train", "").parse_args(arguments))


def test_values_of_every_type():
    config = read(
        "--config=shapes_stage1",
        "--config.steps=7",
        "--config.optimizer.learning_rate",
        "-1e-3",
        "--config.logging.wandb",
        "--noconfig.model.scan",
        "--config.init.from_weights=('a b', 'c')",
        "--config.data.train[0].split=a b=c",
    )
    assert (config.steps, config.optimizer.learning_rate) == (7, -1e-3)
    assert config.logging.wandb and not config.model.scan
    assert config.init.from_weights == ("a b", "c")
    assert config.data.train[0]["split"] == "a b=c"
    assert config.is_locked


def test_an_argument_after_the_name():
    config = load_config("stage2_opt2_7b:vitl,original")
    assert config.batch_size == 1024
    assert config.init.from_run == "runs/stage1_vitl"


def test_a_file_outside_the_package(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\n"
        "from blip2_jax.configs import shapes_stage1\n"
        "@dataclasses.dataclass\n"
        "class Size:\n"
        "    number: 'int'\n"
        "def get_config(steps='5'):\n"
        "    config = shapes_stage1.get_config().unlock()\n"
        "    config.steps = Size(int(steps)).number\n"
        "    return config\n"
    )
    assert load_config(str(file)).steps == 5
    assert load_config(f"{file}:6").steps == 6
    file.write_text("")
    with pytest.raises(UsageError, match="it has no get_config"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.steps.x=1", "config has no key 'steps.x'"),
        ("--workdri=x", "unknown option --workdri"),
        ("x", "unexpected argument 'x'"),
    ],
)
def test_wrong_arguments(argument, message):
    with pytest.raises(UsageError, match=message):
        read("--config=shapes_stage1", argument)


@pytest.mark.parametrize("folder", ["", "eval"])
def test_every_configuration_has_a_summary(folder):
    names = list_configs(folder)
    assert len(names) > 5 and "common" not in names
    assert all(20 < len(config_summary(name)) <= 76 for name in names)
