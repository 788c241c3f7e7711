"""Install blip2_jax: `pip install -e .[test]`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (HERE / "blip2_jax" / "__init__.py").read_text()
).group(1)

TEST = [
    "pytest",
    "pytest-xdist",
    "ruff",
    "mypy",
    "pycocoevalcap",
    "nbclient",
    "ipykernel",
]

setup(
    name="blip2_jax",
    version=VERSION,
    description="BLIP-2 in JAX: pre-train, fine-tune, evaluate, caption, convert",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["blip2_jax", "blip2_jax.*"]),
    package_data={
        "blip2_jax": ["py.typed", "**/*.safetensors", "**/*.json", "**/*.txt"]
    },
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers>=5",
        "grain",
        "tensorflow-datasets",
        "ml_collections",
        "numpy",
        "pillow",
        "opencv-python-headless",
        "safetensors",
        "sentencepiece",
        "protobuf",
        "jaxtyping",
        "rich",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "test": TEST,
        "parity": [*TEST, "torch"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "convert": ["torch"],
        "demo": ["gradio"],
        "evaluate": ["pycocoevalcap", "spacy"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
    },
)
