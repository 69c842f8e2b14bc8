# Every target does its own set-up: a virtual environment in .venv with pinned packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install run test test-all check format lint type arch cov build clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## Install the package and its development tools into .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(READY)  ## Answer samples/prompts.jsonl with the embedded model
	$(BIN)/furiosa-llm run --model samples/tiny-llama --input samples/prompts.jsonl \
	  --output out.parquet --overwrite --expected-column expected --preview 10

test: $(READY)  ## Run the fast tests
	$(BIN)/python -m pytest

test-all: $(READY)  ## Run the slow tests too
	$(BIN)/python -m pytest -m "not gpu"

check: lint type arch  ## Check style, types and layers

format: $(READY)  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(READY)  ## Check style without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## Check types
	$(BIN)/mypy

arch: $(READY)  ## Check that imports respect the layers
	$(BIN)/lint-imports

cov: $(READY)  ## Run the tests with coverage
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

build: $(READY)  ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean:  ## Delete what the tools made, the environment too
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache .coverage htmlcov out.parquet
