"""Tests of compiler_options: this XLA knows the options, and takes them."""

import types

import jax
import numpy as np
import pytest

from blip2_jax import compiler_options as module
from blip2_jax import sharding
from blip2_jax.compiler_options import OPTIONS, compiler_options


def mesh_of(platform):
    """What is read of a mesh of such devices."""
    devices = np.array([types.SimpleNamespace(platform=platform)])
    return types.SimpleNamespace(devices=devices)


def test_a_program_of_this_machine_is_compiled_with_them():
    options = compiler_options(sharding.make_mesh())
    assert options == OPTIONS["cpu"]
    assert int(jax.jit(lambda x: x + 1, compiler_options=options)(1)) == 2


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_platform_has_its_own(platform):
    assert compiler_options(mesh_of(platform)) == OPTIONS.get(platform, {})


def test_what_xla_does_not_know_is_left_out(monkeypatch):
    known = OPTIONS["cpu"]
    monkeypatch.setitem(module.OPTIONS, "cpu", known | {"xla_of_tomorrow": True})
    assert compiler_options(sharding.make_mesh()) == known
