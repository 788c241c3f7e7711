"""What the package imports is what it installs, or belongs to a named extra."""

import ast
import importlib.metadata
import pathlib
import re
import sys

import blip2_jax

ROOT = pathlib.Path(blip2_jax.__file__).parent

# Distributions that a required one requires on all systems.
INDIRECT = {
    "absl",
    "array_record",
    "etils",
    "fsspec",
    "ml_dtypes",
    "tokenizers",
    "tqdm",
}
# Modules of extras. Their absence is an error that names the extra, or a notice.
OPTIONAL = {
    *("datasets", "gradio", "ray", "s3fs", "gcsfs", "spacy", "torch", "wandb"),
    *("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"),
}


def imported_modules():
    """Return the top-level modules that the package imports, with a file of each."""
    modules = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            modules |= {name.partition(".")[0]: path.name for name in names}
    return modules


def required_distributions():
    """Return the names in `install_requires` of setup.py."""
    for node in ast.walk(ast.parse((ROOT.parent / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            return {
                re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
                for requirement in ast.literal_eval(node.value)
            }
    raise AssertionError("setup.py has no install_requires")


def test_every_imported_package_is_installed_with_this_one():
    required = required_distributions()
    distributions = importlib.metadata.packages_distributions()
    known = {*sys.stdlib_module_names, *INDIRECT, *OPTIONAL, "blip2_jax"}
    missing = {
        name: file
        for name, file in imported_modules().items()
        if name not in known
        and not required.intersection(
            distribution.lower().replace("_", "-")
            for distribution in distributions.get(name, ())
        )
    }
    assert not missing
