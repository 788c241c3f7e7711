"""Train: `python launch/train.py --config configs/X.py [--config.a.b=c] --workdir DIR`.

The same command continues a run that was stopped. `--dry_run` shows five decoded
samples of the configured data and trains nothing; `--multihost` is for a run of several
processes that a cluster has started (docs/training.md); `--debug` shows where an error
was raised. The exit code is 0 when the run is complete, 128 + the signal when it saved
and left (143: SIGTERM), 1 after an error.
"""

from __future__ import annotations

import difflib
import os
import sys

from absl import flags, logging
from ml_collections import config_flags

# What a user can mend: the message of such an error says enough without a trace.
USERS_ERRORS = (
    flags.Error,
    ValueError,
    OSError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
)


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The command line's flags, apart from those of other commands.

    Args:
      argv: the command line; the keys of `--config.KEY` in it become flags.
    """
    own = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The experiment: a file with get_config().",
        flag_values=own,
        lock_config=True,
        sys_argv=argv,
    )
    flags.DEFINE_string("workdir", None, "The run's directory.", flag_values=own)
    for name, what in (
        ("dry_run", "Show five samples; train nothing."),
        ("debug", "Show where an error was raised."),
    ):
        flags.DEFINE_bool(name, False, what, flag_values=own)
    define_process_flags(own)
    return own


def define_process_flags(own: flags.FlagValues) -> None:
    """The flags by which several processes find each other."""
    flags.DEFINE_bool(
        "multihost", False, "One of several processes; the cluster says which.", own
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0.", flag_values=own
    )
    for name, what in (
        ("num_processes", "How many processes the run has."),
        ("process_id", "Which of them this is, from 0."),
    ):
        flags.DEFINE_integer(name, None, what, flag_values=own)


def join_others(given: flags.FlagValues) -> None:
    """Meet the other processes, where the flags tell of some."""
    from blip2_jax.parallel import hosts

    which = (given.coordinator_address, given.num_processes, given.process_id)
    if given.multihost or which != (None, None, None):
        hosts.join(*which)


def main(argv: list[str]) -> int:
    """Parse and train; what the user can mend becomes one sentence."""
    given = define_flags(argv)
    try:
        parse(given, argv)
        return run(given)
    except USERS_ERRORS as error:
        if "--debug" in argv:
            raise
        print(f"error: {sentence(error, argv)}", file=sys.stderr, flush=True)
        leave_others()
        return 1


def parse(given: flags.FlagValues, argv: list[str]) -> None:
    """Read the command line.

    Raises:
      flags.Error, LookupError, AttributeError, ...: from flags and configuration.
    """
    parse_required(given, argv, config="configs/stage1_vitg.py")
    if not given.workdir and not given.dry_run:
        raise flags.Error("--workdir is missing: the directory of the run")


def parse_required(given: flags.FlagValues, argv: list[str], **examples: str) -> None:
    """Read the command line; flags that have an example here must be given."""
    rest = given(argv)
    if len(rest) > 1:
        raise flags.Error(f"unexpected argument {rest[1]!r}")
    for name, example in examples.items():
        if given[name].value is None:
            raise flags.Error(f"--{name} is missing, e.g. --{name} {example}")
    given.config.lock()  # a file that could not be read says so here


def run(given: flags.FlagValues) -> int:
    """Do what the flags say; returns the exit code."""
    logging.set_verbosity(logging.ERROR)  # orbax tells of every file
    config = given.config
    if given.dry_run:
        from blip2_jax.cli.dry_run import dry_run

        dry_run(config)
        return 0
    import jax

    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.parallel.host_memory import disable_async_dispatch
    from blip2_jax.training.loop import train

    disable_async_dispatch()
    join_others(given)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    return train(config, given.workdir, make_evaluator)


def leave_others() -> None:
    """End at once where other processes wait: a polite end would wait for them."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(1)


def sentence(error: Exception, argv: list[str]) -> str:
    """What went wrong, without the trace."""
    if isinstance(error, AttributeError | LookupError):
        if unknown := unknown_key(argv):
            return unknown
        return f"{type(error).__name__}: {error} (--debug shows where)"
    return " ".join(str(error).split())


def unknown_key(argv: list[str]) -> str | None:
    """Names the first `--config.a.b=` that the configuration lacks, and a near one."""
    plain = [item for item in argv if not item.startswith("--config.")]
    given = define_flags(plain)
    given(plain)
    config = given.config
    arguments = [item for item in argv if item.startswith("--config.")]
    for key in (item.removeprefix("--config.").split("=")[0] for item in arguments):
        node = config
        for part in key.split("."):
            name, _, index = part.partition("[")
            if name not in node:
                near = difflib.get_close_matches(name, list(node), n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"there are {', '.join(sorted(node))}"
                )
                return f"config has no key {key!r}; {hint}"
            node = node[name]
            if index:
                number = int(index.rstrip("]"))
                if number >= len(node):
                    return f"config has no key {key!r}: {name} has {len(node)} entries"
                node = node[number]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
