"""Compiled programs on disk: which directory, and a second process that loads them."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from blip2_jax.perf import compile_cache

VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_ENABLE_COMPILATION_CACHE",
)


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """The user's cache directory; settings of JAX are restored after the test."""
    before = {name.lower(): getattr(jax.config, name.lower()) for name in VARIABLES}
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "blip2_jax" / "xla"
    for name, value in before.items():
        jax.config.update(name, value)


def directory():
    return jax.config.jax_compilation_cache_dir


def test_the_default_is_bounded(user_cache):
    compile_cache.enable_compile_cache()
    assert directory() == str(user_cache) and user_cache.is_dir()
    assert jax.config.jax_compilation_cache_max_size == compile_cache.MAX_BYTES
    message = compile_cache.compiling_message("first step")
    assert message == "Compiling… (first step; cached for the next run)"


def test_the_first_directory_that_is_given_is_used(user_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    compile_cache.enable_compile_cache(None, "configured")
    assert directory() == "configured" and not user_cache.exists()
    compile_cache.enable_compile_cache("mine", "configured")
    assert directory() == str(tmp_path / "mine")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/jax")
    jax.config.update("jax_compilation_cache_dir", "/of/jax")  # as at its import
    compile_cache.enable_compile_cache(None, "configured")
    assert directory() == "/of/jax" and not user_cache.exists()


@pytest.mark.parametrize("value", ["off", ""])
def test_it_can_be_switched_off(user_cache, value):
    compile_cache.enable_compile_cache(value, "configured")
    assert not compile_cache.is_enabled() and not user_cache.exists()
    message = compile_cache.compiling_message("first step")
    assert message == "Compiling… (first step)"


def test_a_user_without_a_writable_cache_directory_has_none(user_cache):
    user_cache.parent.parent.write_text("a file where the directory should be")
    compile_cache.enable_compile_cache()
    assert directory() is None and not compile_cache.is_enabled()


def test_programs_of_killed_processes_are_deleted(user_cache):
    user_cache.mkdir(parents=True)
    for name in ("whole-cache", "whole-atime", "cut-cache", "being_written-cache"):
        (user_cache / name).write_bytes(b"12345678")
    for name in ("whole-cache", "cut-cache"):
        os.utime(user_cache / name, (0, 0))
    compile_cache.enable_compile_cache()
    names = {path.name for path in user_cache.iterdir()}
    assert names == {"whole-cache", "whole-atime", "being_written-cache"}


def test_a_second_process_loads_the_program(user_cache):
    program = (
        "import jax, jax.numpy as jnp\n"
        "from blip2_jax.perf.compile_cache import enable_compile_cache\n"
        "enable_compile_cache()\n"
        "events = []\n"
        "jax.monitoring.register_event_listener(lambda e, **_: events.append(e))\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))\n"
        "print(events.count('/jax/compilation_cache/cache_hits'))\n"
    )
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=pathlib.Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    first, second = (int(output.stdout) for output in outputs)
    assert first == 0 and second > 0
    assert outputs[1].stderr == ""
