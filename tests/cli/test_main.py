"""The console command: its list of commands, and the help of each."""

import subprocess
import sys

import pytest

from blip2_jax.cli import main


def test_every_command_is_listed_on_a_line(capsys):
    assert main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in main.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as raised:
        main.main([name, "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: blip2-jax {name} ")
    assert f"    blip2-jax {name} " in text  # an example
    assert "--debug" in text


def test_help_does_not_import_jax():
    program = (
        "import sys; from blip2_jax.cli.main import COMMANDS, main\n"
        "import importlib\n"
        "main(['--help'])\n"
        "for name in COMMANDS:\n"
        "    importlib.import_module(f'blip2_jax.cli.{name}').make_parser()"
        ".format_help()\n"
        "assert 'jax' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "--config", "stage1_vitx"], "'stage1_vitx'; did you mean"),
        (["train", "--config", "stage1_vitg.py"], "did you mean 'stage1_vitg'"),
        (["train", "--config", "shapes_stage1:x"], "takes no argument, but 'x'"),
        (["evaluate", "--config", "eval/vqa_zeroshot:x"], "no row 'x'"),
        (["convert", "--to", "lavis"], "required: --source, --output"),
        (["caption", "--model", "x", "--imag", "y"], "required"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys):
    more = ["--workdir", "x"] if arguments[0] == "train" else []
    assert main.main([*arguments, *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
