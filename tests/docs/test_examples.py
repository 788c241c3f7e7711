"""Code blocks of the documentation work: executed at tiny size, or parsed.

All pages share one tiny run of each stage, at the paths that the pages use. Blocks with
a `<!-- needs: ... -->` comment are only parsed (`tests/support/documentation.py`).
"""

import ast
import importlib
import importlib.util
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli import main as console
from blip2_jax.cli.config_options import read_config_option
from blip2_jax.configs import finetune
from tests.support.documentation import (
    PAGES,
    ROOT,
    Block,
    all_blocks,
    read_blocks,
    read_commands,
)
from tests.support.layouts import write_csv
from tests.support.tiny_runs import make_run

LANGUAGES = {"python", "bash", "text", "json"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """Models and images under the paths that the pages use."""
    directory = tmp_path_factory.mktemp("files")
    for name, task in (("stage1", "stage1"), ("stage2_opt", "stage2")):
        make_run(directory / "runs" / "demo" / name, task)
    random = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg"):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(directory / name)
    write_csv(directory / "my_photos")
    return directory


@pytest.fixture
def workspace(files, tmp_path, monkeypatch) -> None:
    """An empty working directory with links to the files."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


def runnable(language: str) -> list[Block]:
    """Return the blocks of a language that a test executes."""
    return [block for block in all_blocks(language) if not block.needs]


def with_tier(page: str, value: object) -> object:
    """Return a test parameter: the README is fast, other pages are slow."""
    marks = () if page == "README.md" else pytest.mark.slow
    return pytest.param(value, marks=marks, id=str(value))


@pytest.mark.parametrize(
    "page",
    [with_tier(page, page) for page in sorted({b.page for b in runnable("python")})],
)
def test_python_runs(page, workspace):
    names: dict[str, object] = {}
    for block in runnable("python"):
        if block.page == page:
            code = "\n" * block.line + block.text  # errors show the line of the page
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(
    "block", [with_tier(block.page, block) for block in runnable("bash")]
)
def test_commands_run(block, workspace):
    for words in read_commands(block):
        if words[0] == "blip2-jax":
            assert console.main([*words[1:], "--debug"]) == 0


@pytest.mark.parametrize("block", runnable("bash"), ids=str)
def test_commands_without_a_comment_can_run(block):
    for words in read_commands(block):
        is_test = words[:3] == ["python", "-m", "pytest"]  # the suite runs it
        assert is_test or words[0] == "blip2-jax", f"{block} needs a comment: {words}"


def test_languages_are_known():
    blocks = [block for page in PAGES for block in read_blocks(page)]
    assert {block.language for block in blocks} <= LANGUAGES


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_parses(block):
    ast.parse(block.text)


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_commands_parse(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in read_commands(block):
        check(words)


def check(words: list[str]) -> None:
    """Check a command without running it."""
    program, *rest = words
    if program == "blip2-jax":
        check_command(*rest)
    elif program == "make":
        targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
        assert rest[0] in targets, words
    elif program == "curl":
        pytest.importorskip("fastapi")
        paths = importlib.import_module("blip2_jax.serve.app").PATHS
        assert any(rest[0].endswith(f":8000{path}") for path in paths), words
    elif program == "pip":
        check_extras(rest)
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / path).exists() for path in rest[2:]), words
    elif program == "python" and rest[0] == "-m":
        check_options(importlib.util.find_spec(rest[1]).origin, rest[2:])
    elif program == "python" and rest[0].startswith("benchmarks/"):
        check_options(ROOT / rest[0], rest[1:])
    elif program == "sbatch":
        (script,) = [word for word in rest if word.endswith(".sbatch")]
        assert (ROOT / script).exists()
        arguments = rest[rest.index(script) + 1 :]
        check_command(
            *(["train"] if script.endswith("train.sbatch") else []), *arguments
        )
    elif program.startswith("launch/"):
        assert (ROOT / program).exists()
        check_command("train", *rest[rest.index("--config") :])
    else:
        raise AssertionError(f"unknown program: {words}")


def check_command(name: str, *arguments: str) -> None:
    """Parse the options of a command and build the configuration that they name."""
    assert name in console.COMMANDS
    parser = importlib.import_module(f"blip2_jax.cli.{name}").make_parser()
    parsed = parser.parse_args(list(arguments))
    config, _, argument = str(getattr(parsed, "config", "")).partition(":")
    if config == "finetune":
        finetune.parse(argument)  # building it would open the model
    elif config == "stage2_language_model":
        assert argument  # as above
    elif name == "cache_features" and parsed.config is None:
        assert parsed.model  # this command needs no configuration
    elif hasattr(parsed, "overrides"):
        read_config_option(parsed)


def check_options(script: str | pathlib.Path, arguments: list[str]) -> None:
    """Look up the options of a script in its source, or in the shared harness."""
    sources = [pathlib.Path(script), ROOT / "benchmarks" / "harness.py"]
    text = "".join(path.read_text() for path in sources)
    for word in arguments:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in text, f"{script} has no {word}"


def check_extras(arguments: list[str]) -> None:
    """Check that the extras of an installation from the checkout exist."""
    setup = (ROOT / "setup.py").read_text()
    for word in arguments:
        if extra := re.fullmatch(r"\.\[(\w+)\]", word):
            assert f'"{extra[1]}": ' in setup, word
