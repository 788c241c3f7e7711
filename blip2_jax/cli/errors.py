"""Errors of a command: one line on stderr and an exit code, without a traceback."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import sys
import textwrap
import traceback
from collections.abc import Iterator

from blip2_jax.cli.processes import abandon_other_processes

FAILURE, WRONG_USE, INTERRUPTED = 1, 2, 130  # 130: 128 + SIGINT, as shells say it

_PACKAGE = pathlib.Path(__file__).parents[1]
_HINT = "unexpected; --debug shows the traceback"
_LONGEST = 500  # characters of a message that this package did not write


class UsageError(ValueError):
    """A command line that cannot be run; the message is one sentence for the user."""


@contextlib.contextmanager
def reading_option(prefix: str) -> Iterator[None]:
    """Turn a ValueError about an option's value into a UsageError.

    Args:
      prefix: what the message begins with, e.g. "--topology: ".
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{prefix}{error}") from error


def report_error(error: BaseException) -> int:
    """Print an error as one line on stderr.

    Nothing is printed if the reader of stdout has closed it, as `head` does.

    Args:
      error: what ended the command.

    Returns:
      The exit code: `WRONG_USE` for a `UsageError`, `INTERRUPTED` after Ctrl-C,
      `FAILURE` otherwise. A process that others are connected to exits here.
    """
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return FAILURE
    print(f"error: {describe_error(error)}", file=sys.stderr, flush=True)
    abandon_other_processes()
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG_USE if isinstance(error, UsageError) else FAILURE


def describe_error(error: BaseException) -> str:
    """Return an error's message on one line.

    The type and the way to the traceback are added to errors that this package did not
    raise on purpose, because their messages rarely say what to do.
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = _message(error)
    if _is_out_of_memory(error):
        return f"out of memory; a smaller batch needs less: {_shorten(text)}"
    if _is_expected(error, text):
        return text
    name = type(error).__name__
    return f"{name}: {_shorten(text)} ({_HINT})" if text else f"{name} ({_HINT})"


def _message(error: BaseException) -> str:
    """Return the message in one line; of a system's error the reason and the file."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        return ": ".join([*names, error.strerror])
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


def _shorten(text: str) -> str:
    return textwrap.shorten(text, _LONGEST, placeholder=" ...")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return True for the errors of Python, NumPy and XLA."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _is_expected(error: BaseException, text: str) -> bool:
    """Return True if the message was written for the user."""
    if isinstance(error, UsageError | OSError | ImportError):
        return True
    # These come from the interpreter, also where a line of this package causes them.
    if isinstance(error, RecursionError | UnicodeError | IndexError):
        return False
    if not _is_raised_here(error):
        return False
    if isinstance(error, KeyError):  # that of a dict is the key alone
        return " " in text
    return isinstance(error, ValueError | RuntimeError) and bool(text)


def _is_raised_here(error: BaseException) -> bool:
    """Return True if a line of this package raised the error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    file = pathlib.Path(frames[-1][0].f_code.co_filename)
    return _PACKAGE in file.parents


def _stdout_is_closed() -> bool:
    """Return True if stdout is a pipe without a reader; further output is dropped."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object without a file
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # reports errors and hang-ups only
    if not poll.poll(0):
        return False
    # The interpreter flushes stdout again when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True
