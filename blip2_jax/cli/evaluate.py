"""Evaluate: `python launch/evaluate.py --model MODEL --task retrieval|captioning|vqa`.

The model is a run, a converted or Hugging Face folder, or a LAVIS file (what that
leaves out is named by `--config.beside.vision=...` and so on).

`--data` is a source spec as JSON, a list of them, or a file that holds either; without
it the run's own evaluation sources are used. `--config configs/eval/X.py` is a whole
evaluation in one file, and `--config.decoding.num_beams=3` changes any of its keys.
Writes one JSON record, and beside it every example and the file for a benchmark's
server. Several processes share the examples; they find each other as in training
(docs/training.md): `--multihost`, or the three flags.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from blip2_jax.cli import train

DEFAULT = pathlib.Path(__file__).parents[1] / "configs" / "eval" / "default.py"


def define_flags() -> flags.FlagValues:
    """The command line's flags, apart from those of other commands."""
    own = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        str(DEFAULT),
        "The evaluation: a file with get_config().",
        flag_values=own,
        lock_config=True,
    )
    for name, what in (
        ("model", "Directory of a run, folder or file of weights."),
        ("task", "retrieval, captioning or vqa."),
        ("data", "Source spec(s): JSON, or a file of it."),
        ("out", "The record to write."),
    ):
        flags.DEFINE_string(name, None, what, flag_values=own)
    flags.DEFINE_bool("debug", False, "Show where an error was raised.", own)
    train.define_process_flags(own)
    return own


def main(argv: list[str]) -> int:
    """Parse, evaluate, print; what the user can mend becomes one sentence."""
    try:
        given = define_flags()
        rest = given(argv)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}")
        config = requested(given)
        train.join_others(given)
        return run(config)
    except train.USERS_ERRORS as error:
        if "--debug" in argv:
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
        train.leave_others()
        return 1


def requested(given: flags.FlagValues) -> ConfigDict:
    """The configuration with what the short flags say."""
    config = given.config.copy_and_resolve_references()
    with config.unlocked():
        for name in ("model", "task", "out"):
            if given[name].value is not None:
                config[name] = given[name].value
        if given.data is not None:
            config.data = read_specs(given.data)
    return config


def read_specs(text: str) -> tuple[dict[str, Any], ...]:
    """Source specs from JSON, or from a file that holds it."""
    is_json = text.lstrip()[:1] in ("{", "[")
    try:
        specs = json.loads(text if is_json else pathlib.Path(text).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"--data is no JSON: {error}") from error
    return tuple(specs) if isinstance(specs, list) else (specs,)


def run(config: ConfigDict) -> int:
    """Evaluate and print the scores; returns the exit code."""
    logging.set_verbosity(logging.ERROR)  # orbax tells of every file
    from blip2_jax.cli.evaluation_run import evaluate_run
    from blip2_jax.parallel import hosts

    record, path = evaluate_run(config)
    if not hosts.is_first():
        return 0
    intervals = record.get("intervals", {})
    for name, value in record["scores"].items():
        low, high = intervals.get(name, (None, None))
        interval = "" if low is None else f"  [{low:.2f}, {high:.2f}]"
        print(f"{name:>24}  {value:.2f}{interval}")
    if record["notice"]:
        print(record["notice"])
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
