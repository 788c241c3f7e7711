"""The wheel, installed into a new environment and used outside the checkout."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from PIL import Image

import blip2_jax
from tests.support.tiny_runs import make_run

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pip", "setuptools"))),
    reason="needs pip and setuptools to build the wheel",
)

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(directory):
    """Build the wheel from a copy, so that the checkout stays clean."""
    copy = directory / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    # Following the link to `configs` is the build's task.
    for name in ("blip2_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir"]
    subprocess.run([*command, directory, copy], check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the wheel into a new environment; returns its directory."""
    directory = tmp_path_factory.mktemp("installed")
    wheel = build_wheel(directory)
    environment = directory / "environment"
    venv.create(environment)
    variables = {"base": str(environment), "platbase": str(environment)}
    site_packages = pathlib.Path(sysconfig.get_path("purelib", vars=variables))
    dependencies = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install"]
    options = ["--no-deps", "--no-index", "--quiet", "--force-reinstall"]
    subprocess.run([*command, *options, wheel], check=True)
    return directory


def run(installed, *arguments):
    """Return the output of `blip2-jax`, started outside the checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [installed / "environment" / "bin" / "blip2-jax", *arguments],
        cwd=installed,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_version(installed):
    assert "  train " in run(installed, "--help")
    assert run(installed, "--version") == f"blip2-jax {blip2_jax.__version__}\n"
    text = run(installed, "train", "--help")
    assert "--workdir DIR" in text and "\n  stage1_vitg " in text
    assert "\n  eval/vqa_zeroshot " in run(installed, "evaluate", "--help")


def test_configurations_are_found_by_name(installed):
    text = run(installed, "train", "--config", "shapes_stage1", "--dry_run")
    assert "5. " in text and (installed / "dry_run.png").exists()
    location = subprocess.run(
        [
            installed / "environment" / "bin" / "python",
            "-c",
            "import blip2_jax.configs.eval as e; print(e.__file__)",
        ],
        cwd=installed,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert location.stdout.startswith(str(installed)), location.stderr


def test_captions(installed):
    make_run(installed / "run", "stage2")
    Image.new("RGB", (40, 30), "red").save(installed / "a.png")
    options = ("--num_beams", "1", "--max_new_tokens", "2")
    text = run(installed, "caption", "--model", "run", "--image", "a.png", *options)
    assert text.startswith("a.png: ")
    assert "step 0 of" in run(installed, "report", "--runs", "run")
    assert "prefers-color-scheme" in (installed / "report.html").read_text()


def test_the_model_of_the_package(installed):
    options = ("--num_beams", "1")
    text = run(
        installed, "caption", "--model", "shapes", "--image", "shapes:0", *options
    )
    assert text.startswith("shapes:0: ") and "small purple triangle" in text
    code = (
        "import blip2_jax\n"
        "model = blip2_jax.load('shapes_stage1')\n"
        "picture = blip2_jax.example_image(0)\n"
        "print(model.match(picture, ['a red circle', 'a blue star'], pairs='all'))"
    )
    done = subprocess.run(
        [installed / "environment" / "bin" / "python", "-c", code],
        cwd=installed,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert "Match(itc=array([[" in done.stdout, done.stderr
