"""Compiled programs on disk, so that a later process loads them in place of compiling.

JAX keeps the programs by a hash of their code, of the compiler's version and of the
devices, so that a directory can be shared by models, versions and machines.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

import jax

from blip2_jax.parallel.user_cache import user_cache_directory

OFF = "off"
# Limits of the user's cache directory. Others are as large as their owners like.
MAX_BYTES = 2 * 2**30
MIN_COMPILE_SECONDS = 0.1
_UNFINISHED_AFTER_S = 600


def enable_compile_cache(directory: str | None = None, configured: str = "") -> None:
    """Keep the programs that this process compiles, and load those that are kept.

    The directory is the first that is given of: `directory`, the environment variable
    `JAX_COMPILATION_CACHE_DIR`, `configured`, and the user's cache directory. Without a
    cache directory that can be written to, nothing is kept.

    Args:
      directory: from the command line; "off" or "" keeps and loads nothing.
      configured: from a configuration; "" is none.
    """
    if directory is not None and directory in (OFF, ""):
        jax.config.update("jax_enable_compilation_cache", False)
    elif directory:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(directory))
    elif "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # JAX reads it
    elif configured:
        jax.config.update("jax_compilation_cache_dir", configured)
    else:
        _use_default_directory()


def is_enabled() -> bool:
    """Return True if compiled programs are kept for later processes."""
    settings: Any = jax.config
    return bool(
        settings.jax_compilation_cache_dir and settings.jax_enable_compilation_cache
    )


def compiling_message(what: str) -> str:
    """Return the line that is printed before the first program is compiled.

    Args:
      what: what takes long for this reason, e.g. "first step".
    """
    cached = "; cached for the next run" if is_enabled() else ""
    return f"Compiling… ({what}{cached})"


def _use_default_directory() -> None:
    """Use the user's cache directory, in which old programs are deleted."""
    try:
        directory = user_cache_directory() / "xla"
        directory.mkdir(parents=True, exist_ok=True)
        _delete_unfinished(directory)
    except (OSError, RuntimeError):
        return
    if not os.access(directory, os.W_OK):
        return
    for name, value in {
        "jax_compilation_cache_dir": str(directory),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_SECONDS,
    }.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _delete_unfinished(directory: pathlib.Path) -> None:
    """Delete programs that a killed process was writing.

    JAX writes a program and then the time of its last use. Without the latter it fails
    to delete old programs, and stores no more.
    """
    for program in directory.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        if used.exists():
            continue
        if time.time() - program.stat().st_mtime > _UNFINISHED_AFTER_S:
            program.unlink(missing_ok=True)
