# `make demo` and `make test` need Python (3.11 or newer) and make, nothing else:
# each sets up its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= runs/demo
DEMO_FLAGS ?=
# Large pages, and what a step gives back is kept for the next (glibc): a tenth of its time.
MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
# Where a worker crashes the run ends and names the test; a new worker might wait for ever.
PYTEST := $(BIN)/python -m pytest -q -n 2 --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types notebook docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## make the virtual environment

$(STAMP): setup.py
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "blip2_jax needs Python 3.11 or newer, this is %d.%d (set PYTHON=...)" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(STAMP)  ## train both stages on a small world, evaluate, write report.html
	$(MALLOC) $(BIN)/python launch/demo.py --workdir $(DEMO_DIR) $(DEMO_FLAGS)

test: $(STAMP) lint types  ## lint, types and the fast tests (40 CPU-minutes)
	$(PYTEST) --dist loadfile -m "not slow" tests

test-slow: $(STAMP)  ## the longer tests (about half an hour on 2 cores)
	$(PYTEST) --dist load -m slow tests

lint: $(STAMP)  ## ruff (style, docstrings, format), imports between packages, shape letters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python -m pytest -q tests/test_import_direction.py tests/test_dimension_letters.py

types: $(STAMP)  ## mypy
	$(BIN)/mypy

notebook: $(STAMP)  ## run the notebook and keep its outputs in it
	$(BIN)/python -m tests.support.notebook

docs: $(STAMP)  ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove the virtual environment and what runs left
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
