"""The `--config` option: find a configuration, load it and change its keys."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import pathlib
import sys
import textwrap
import types
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import CommandParser, suggest

DIRECTORY = pathlib.Path(__file__).parents[1] / "configs"


class ConfigParser(CommandParser):
    """A parser of a command with `--config` and `--config.KEY=VALUE`."""

    def __init__(
        self,
        name: str,
        description: str | None,
        *,
        folder: str = "",
        default: str | None = None,
    ) -> None:
        """Initialize the parser.

        Args:
          name: the command.
          description: text before the options.
          folder: folder of `configs` whose files the help lists.
          default: configuration if none is given.
        """
        super().__init__(name, description)
        self.folder = folder
        self.add_argument(
            "--config",
            default=default,
            metavar="NAME[:ARGUMENT]",
            help="an installed configuration by name, or the path of a file with a "
            "get_config(); the argument is described in the file"
            + (f" (default: {default})" if default else ""),
        )
        self.add_argument(
            "--config.KEY",
            dest="unused",
            metavar="VALUE",
            help="change a key, e.g. --config.batch_size=64 or "
            "--config.data.train[0].path=annotations.json",
        )

    def format_help(self) -> str:
        """Return the help text; it ends with the list of configurations."""
        names = list_configs(self.folder)
        width = max(map(len, names)) + 2
        lines = [f"  {name:<{width}}{config_summary(name)}" for name in names]
        return "\n".join([super().format_help(), "configurations:", *lines, ""])

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the options; those that change keys become `overrides`."""
        parsed, rest = self.parse_known_args(args, namespace)
        parsed.overrides = _check_overrides(rest)
        return parsed

    def is_known(self, name: str) -> bool:
        """Return True for options and for `--config.KEY` with any key."""
        return name.startswith(("--config.", "--noconfig.")) or super().is_known(name)


def _check_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments after checking that all of them change keys."""
    expects_value = False
    for argument in arguments:
        if argument.startswith(("--config.", "--noconfig.")):
            expects_value = "=" not in argument
        elif not expects_value:
            raise UsageError(f"unexpected argument {argument!r}")
        else:
            expects_value = False
    return list(arguments)


def read_config_option(arguments: argparse.Namespace) -> ConfigDict:
    """Load the configuration that a command line names and change its keys.

    Args:
      arguments: command line, parsed by a `ConfigParser`.

    Returns:
      The locked configuration.

    Raises:
      UsageError: there is no such configuration or key, or a value has the wrong type.
    """
    config = load_config(arguments.config)
    for argument in arguments.overrides:
        if argument.startswith(("--config.", "--noconfig.")):
            _check_key(config, argument.partition(".")[2].partition("=")[0])
    command_line = ["", *arguments.overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=command_line
    )
    try:
        values(command_line)
    except flags.Error as error:
        raise UsageError(str(error)) from error
    return values.config


def load_config(text: str) -> ConfigDict:
    """Load a configuration.

    Args:
      text: name of an installed configuration ("stage1_vitg", "eval/vqa_zeroshot") or
        path of a Python file with a `get_config()`; text after a ':' is the argument
        of `get_config`.

    Raises:
      UsageError: there is no such configuration, or it refuses the argument.
    """
    name, _, argument = text.partition(":")
    module = _import_file(name) if name.endswith(".py") else _import_installed(name)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise UsageError(f"{name} is not a configuration: it has no get_config()")
    if argument and not inspect.signature(get_config).parameters:
        raise UsageError(
            f"--config {name} takes no argument, but {argument!r} is given"
        )
    if not argument:
        return get_config().lock()
    with reading_option(f"--config {text}: "):
        return get_config(argument).lock()


def list_configs(folder: str = "") -> list[str]:
    """Return the names of the installed configurations.

    Args:
      folder: "" for training, "eval" for evaluation.
    """
    paths = sorted((DIRECTORY / folder).glob("*.py"))
    names = [p.stem for p in paths if not p.stem.startswith(("__init__", "common"))]
    return [f"{folder}/{name}" if folder else name for name in names]


def config_summary(name: str) -> str:
    """Return the start of a configuration's docstring after its command."""
    tree = ast.parse((DIRECTORY / f"{name}.py").read_text())
    paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
    text = " ".join(paragraphs[min(1, len(paragraphs) - 1)].split())
    return textwrap.shorten(text.partition(". ")[0].rstrip("."), 76, placeholder=" ...")


def _import_installed(name: str) -> types.ModuleType:
    names = [*list_configs(), *list_configs("eval")]
    if name not in names:
        raise UsageError(f"there is no configuration {name!r}" + suggest(name, names))
    return importlib.import_module(f"blip2_jax.configs.{name.replace('/', '.')}")


def _import_file(name: str) -> types.ModuleType:
    path = pathlib.Path(name)
    if not path.is_file():
        names = [*list_configs(), *list_configs("eval")]
        raise UsageError(
            f"there is no configuration file {name!r}" + suggest(path.stem, names)
        )
    # A name of its own, so that no installed module is replaced.
    module_name = f"blip2_jax_config_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends with ".py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{name}, line {error.lineno}: {error.msg}") from error
    return module


def _check_key(config: ConfigDict, key: str) -> None:
    """Check that a configuration has a key such as "data.train[0].path".

    Raises:
      UsageError: it has not; the message names a similar key.
    """
    node: Any = config
    for part in key.split("."):
        name, bracket, index = part.partition("[")
        keys = sorted(node) if isinstance(node, ConfigDict | dict) else []
        if name not in keys:
            elsewhere = [k for k in _all_keys(config) if k.split(".")[-1] == name]
            known, like = (elsewhere, elsewhere[0]) if elsewhere else (keys, name)
            raise UsageError(f"config has no key {key!r}" + suggest(like, known))
        node = node[name]
        if bracket:
            node = _entry(node, index.removesuffix("]"), key, name)


def _entry(entries: Any, index: str, key: str, name: str) -> Any:
    """Return an entry of a list in a configuration.

    Raises:
      UsageError: the list has no such entry, or it is no list.
    """
    if not isinstance(entries, list | tuple):
        raise UsageError(f"config has no key {key!r}: {name} is no list")
    if not index.isdigit() or int(index) >= len(entries):
        raise UsageError(
            f"config has no key {key!r}: {name} has {len(entries)} entries, from 0"
        )
    return entries[int(index)]


def _all_keys(node: ConfigDict, prefix: str = "") -> list[str]:
    """List the keys of a configuration with those above them."""
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        if isinstance(value, ConfigDict):
            keys += _all_keys(value, f"{prefix}{name}.")
    return keys
