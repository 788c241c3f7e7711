"""Output of started programs is kept back, and shown after an error."""

import subprocess

import pytest

from blip2_jax.metrics.quiet_programs import quiet_programs

NOISE = "echo out; echo reason >&2"


def test_output_is_kept_back(capfd):
    with quiet_programs():
        print("print")
        subprocess.run(NOISE, shell=True, check=True)
    subprocess.run("echo after", shell=True, check=True)
    assert capfd.readouterr() == ("after\n", "")


def test_output_is_shown_after_an_error(capfd):
    with pytest.raises(subprocess.CalledProcessError), quiet_programs():
        subprocess.run(f"{NOISE}; exit 3", shell=True, check=True)
    out, error = capfd.readouterr()
    assert out == "" and error == "out\nreason\n"
