"""The console command: its list of commands, and the help of each."""

import importlib
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from blip2_jax.cli import main
from blip2_jax.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]


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
    assert text.count(f"\n    blip2-jax {name}") >= 2  # examples
    with pytest.raises(SystemExit):
        main.main(["help", name])
    assert capsys.readouterr().out == text


def parser_of(name):
    return importlib.import_module(f"blip2_jax.cli.{name}").make_parser()


@pytest.mark.parametrize("name", main.COMMANDS)
def test_options_are_described_in_one_style(name):
    parser = parser_of(name)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action
        (*_, option) = action.option_strings or ["--debug"]
        assert re.fullmatch("--[a-z0-9_]+|--config.KEY", option)
        has_default = action.default not in (None, "", [], False, "==SUPPRESS==")
        if has_default and action.nargs != 0:
            assert f"default: {action.default}" in text


def test_what_is_read_and_written_has_the_same_name_everywhere():
    options = {name: set(parser_of(name)._option_string_actions) for name in COMMANDS}
    for name, known in options.items():
        assert not known & {"--source", "--output", "--run", "--json"}, name
    for name in ("caption", "convert", "evaluate", "pack_tower"):
        assert "--model" in options[name]
    for name in ("train", "demo", "tables"):
        assert "--workdir" in options[name]
    for name in ("convert", "evaluate", "report", "plan", "train_vocabulary"):
        assert "--out" in options[name]


def test_former_names_and_hyphens_are_accepted():
    words = ["--source=a", "--output", "b", "--to=lavis", "--image-size", "48"]
    parsed = parser_of("convert").parse_args(words)
    assert (str(parsed.model), str(parsed.out), parsed.image_size) == ("a", "b", 48)
    assert parser_of("train").parse_args(["--dry-run"]).dry_run
    assert parser_of("plan").parse_args(["--json=a"]).out == "a"
    assert parser_of("pack_tower").parse_args(["--run=a", "--out=b"]).model == "a"
    words = [
        "--model=a",
        "--image=b",
        "--prompt",
        "- a photo",
        "--length_penalty",
        "-1.5",
    ]
    parsed = parser_of("caption").parse_args(words)
    assert (parsed.prompt, parsed.length_penalty) == ("- a photo", -1.5)


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=str)
def test_scripts_have_help_without_jax(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "jax", None)  # an import fails
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(path), run_name="__main__")
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("usage: blip2-jax ")


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
        (["trian"], "there is no command 'trian'; did you mean 'train' or"),
        (["--modle", "x"], "there is no command '--modle'; there are train"),
        (["train", "--config", "stage1_vitx"], "'stage1_vitx'; did you mean"),
        (["train", "--config", "stage1_vitg.py"], "did you mean 'stage1_vitg'"),
        (["train", "--config", "shapes_stage1:x"], "the number of queries, not 'x'"),
        (["evaluate", "--config", "eval/default:x"], "takes no argument, but 'x'"),
        (["evaluate", "--config", "eval/vqa_zeroshot:x"], "no row 'x'"),
        (["convert", "--to", "lavis"], "required: --model, --out"),
        (["caption", "--model", "x", "--imag", "y"], "--imag; did you mean '--image'"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys):
    more = ["--workdir", "x"] if arguments[0] == "train" else []
    assert main.main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1
