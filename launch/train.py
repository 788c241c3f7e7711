"""Train: `python launch/train.py --config configs/X.py [--config.a.b=c] --workdir DIR`.

The same command continues a run that was stopped. `--dry_run` shows five decoded
samples of the configured data and trains nothing.
"""

from __future__ import annotations

import difflib
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # configs import each other
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file with get_config().", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show five samples; train nothing.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several processes of a run.")
DEBUG = flags.DEFINE_bool("debug", False, "Show where an error was raised.")


def main(argv: list[str]) -> int:
    """Parse, train, and turn what the user can mend into one sentence."""
    try:
        parse(argv)
        return run()
    except Exception as error:
        if ("--debug" in argv) or not is_users(error):
            raise
        print(f"error: {sentence(error, argv)}", file=sys.stderr)
        return 1


def parse(argv: list[str]) -> None:
    """Read the command line.

    Raises:
      flags.Error, AttributeError, KeyError, ImportError: from flags and configuration.
    """
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
        raise flags.Error(f"unexpected argument {rest[1]!r}")
    if CONFIG.value is None:
        raise flags.Error("--config is missing, e.g. --config configs/stage1_vitg.py")
    if not WORKDIR.value and not DRY_RUN.value:
        raise flags.Error("--workdir is missing: the directory of the run")


def run() -> int:
    """Do what the flags say; returns the exit code."""
    logging.set_verbosity(logging.ERROR)  # orbax tells of every file
    config = CONFIG.value
    if DRY_RUN.value:
        from blip2_jax.data.dry_run import dry_run

        dry_run(config)
        return 0
    import jax

    from blip2_jax.training.loop import train

    if MULTIHOST.value:
        jax.distributed.initialize()
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    return train(config, WORKDIR.value)


def is_users(error: Exception) -> bool:
    """Whether an error is about what was asked for, and its message says enough."""
    kinds = (flags.Error, ValueError, OSError, KeyError, AttributeError, RuntimeError)
    return isinstance(error, kinds)


def sentence(error: Exception, argv: list[str]) -> str:
    """What went wrong, without the trace."""
    unknown = unknown_key(argv)
    if isinstance(error, AttributeError | KeyError) and unknown:
        return unknown
    if isinstance(error, KeyError):
        return str(error.args[0])
    return " ".join(str(error).split())


def unknown_key(argv: list[str]) -> str | None:
    """Names the first `--config.a.b=` that the configuration lacks, and a near one."""
    try:
        config = CONFIG.value
    except Exception:
        return None
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        key = argument.removeprefix("--config.").split("=")[0]
        node = config
        for part in key.split("."):
            name = part.split("[")[0]
            if name not in node:
                near = difflib.get_close_matches(name, list(node), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                return f"config has no key {key!r}{hint}"
            node = node[name]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
