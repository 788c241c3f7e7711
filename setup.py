"""Install blip2_jax: `pip install .`, or `pip install -e .[test]` to work on it."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (HERE / "blip2_jax" / "__init__.py").read_text()
).group(1)

# Paths on object stores.
REMOTE = ["fsspec", "gcsfs", "s3fs>=2025.2"]  # older ones lack methods

DOCS = ["mkdocs-material", "mkdocstrings[python]"]

SERVE = ["fastapi>=0.110", "uvicorn>=0.30", "prometheus-client"]

TEST = [
    *DOCS,
    *REMOTE,
    *SERVE,
    "aiobotocore>=3",  # named here, it saves pip minutes of trying boto3 versions
    "beartype",
    "datasets",  # writes a data set that a test reads
    "gcp-storage-emulator",
    "httpx",  # talks to the HTTP server of a test
    "ipykernel",
    "moto[server]",
    "mypy",
    "nbclient",
    "pytest",
    "pytest-xdist",
    "ray",  # a cluster of two local nodes
    "ruff",
    "selenium",  # reports in a browser, where there is one
    "setuptools>=77",  # builds the wheel that a test installs
]

setup(
    name="blip2_jax",
    version=VERSION,
    description="BLIP-2 in JAX: pre-train, fine-tune, evaluate, caption, convert",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["BLIP-2", "vision-language", "JAX", "Flax", "captioning", "VQA"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # `blip2_jax/configs` is a link to `configs`: the wheel contains the files.
    packages=find_packages(include=["blip2_jax", "blip2_jax.*"]),
    package_data={
        "blip2_jax": ["py.typed", "**/*.safetensors", "**/*.json", "**/*.css"]
    },
    entry_points={"console_scripts": ["blip2-jax = blip2_jax.cli.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax",
        "etils",
        "optax",
        "orbax-checkpoint",
        "transformers>=5",
        "jinja2>=3.1",  # transformers renders chat templates with it
        "huggingface_hub>=1.31",
        "grain",
        "array_record",
        "ml_dtypes",
        "tensorflow-datasets",
        "ml_collections",
        "numpy",
        "pillow",
        "pyarrow",
        "pycocoevalcap",
        "opencv-python-headless",
        "filelock",
        "safetensors",
        "sentencepiece",
        "protobuf",
        "jaxtyping",
        "qwix",
        "rich",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "convert": ["torch"],
        "cuda": ["jax[cuda13]"],
        "demo": ["gradio>=6"],
        "docs": DOCS,
        "evaluate": ["spacy"],
        "parity": [*TEST, "torch", "peft"],
        "ray": ["ray"],
        "remote": REMOTE,
        "serve": SERVE,
        "test": TEST,
        "tpu": ["jax[tpu]"],
    },
)
