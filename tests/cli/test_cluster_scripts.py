"""The SLURM and TPU scripts pass the user's arguments on unchanged."""

import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SLURM, TPU = LAUNCH / "slurm" / "train.sbatch", LAUNCH / "tpu" / "train.sh"
ARRAY = LAUNCH / "slurm" / "shards.sbatch"
ARGUMENTS = ("--config", "configs/x.py", "--config.data.train[0].path=/a b/c")


def run(script, *arguments, commands, tmp_path):
    """Run a script with these commands (lines of shell) instead of the cluster's."""
    (tmp_path / "bin").mkdir()
    for name, line in {"activate": "", **commands}.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{line}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "VENV": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_ARRAY_TASK_MIN": "3",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }
    return subprocess.run(
        ["bash", script, *arguments], env=environment, capture_output=True, text=True
    )


PRINT = r'printf "%s|" "$@"'


@pytest.mark.parametrize(("code", "queued"), [(0, False), (143, True), (1, False)])
def test_slurm(tmp_path, code, queued):
    commands = {"srun": f"{PRINT}; exit {code}", "scontrol": 'echo "$@"'}
    done = run(SLURM, *ARGUMENTS, commands=commands, tmp_path=tmp_path)
    assert done.returncode == code
    command = "--kill-on-bad-exit=1|python|launch/train.py|--multihost|"
    assert command + "|".join(ARGUMENTS) + "|" in done.stdout
    assert ("requeue 7" in done.stdout) == queued


def test_each_task_of_a_slurm_array_does_its_part(tmp_path):
    done = run(ARRAY, "caption", "a b", commands={"python": PRINT}, tmp_path=tmp_path)
    assert done.stdout == "-m|blip2_jax.cli.main|caption|a b|--shard|2/4|"


def test_tpu(tmp_path):
    """The shells of the hosts parse the same arguments."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f"#!/bin/bash\n{PRINT}\n")
    python.chmod(0o755)
    commands = {"gcloud": f'cd() {{ builtin cd {tmp_path}; }}; eval "${{@: -1}}"'}
    done = run(
        TPU, "run", "pod", "zone", *ARGUMENTS, commands=commands, tmp_path=tmp_path
    )
    assert done.stdout == "|".join(("launch/train.py", "--multihost", *ARGUMENTS, ""))


def test_tpu_prints_its_usage(tmp_path):
    done = run(TPU, "run", "pod", commands={}, tmp_path=tmp_path)
    assert done.returncode != 0 and "setup|run NAME ZONE" in done.stderr


@pytest.mark.parametrize("script", [SLURM, ARRAY, TPU])
def test_bash_parses_the_scripts(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
