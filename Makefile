# Every target does its own set-up: a virtual environment in .venv with pinned packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
# Set these to reuse what is there: checkpoints, and an environment for each peer.
BENCH_MODELS ?= .bench/models
BENCH_ENVIRONMENTS ?= .bench/environments
BENCH_ARGS ?=
# A process for each core, but no more than the memory of a large machine is enough for.
PYTEST_PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install run test test-all test-gpu check format lint type arch cov build clean
.PHONY: bench-cpu bench-gpu bench-peers bench-report

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## Install the package and its development tools into .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(READY)  ## Answer samples/prompts.jsonl with the embedded model
	$(BIN)/furiosa-llm run --model samples/tiny-llama --input samples/prompts.jsonl \
	  --output out.parquet --overwrite --expected-column expected --preview 10

test: $(READY)  ## Run the fast tests
	$(BIN)/python -m pytest $(PYTEST_PARALLEL)

test-all: $(READY)  ## Run the slow tests too
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) -m "not gpu"

test-gpu: $(READY)  ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

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
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) --cov --cov-report=term-missing:skip-covered

bench-cpu: $(BENCH_READY)  ## Measure this engine alone (BENCH_ARGS="--workloads mixed")
	$(BIN)/python -m benchmarks.measure_engine --models $(BENCH_MODELS) $(BENCH_ARGS)
	$(MAKE) bench-report

bench-peers: $(BENCH_READY)  ## Measure it beside others, which are installed first
	$(BIN)/python -m benchmarks.environments --folder $(BENCH_ENVIRONMENTS)
	$(BIN)/python -m benchmarks.measure_peers --models $(BENCH_MODELS) \
	  --environments $(BENCH_ENVIRONMENTS) $(BENCH_ARGS)
	$(MAKE) bench-report

bench-gpu: $(READY)  ## Measure this engine on a GPU, in less than ten minutes
	$(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

bench-report: $(BENCH_READY)  ## Write docs/benchmarks.md and its plot from benchmarks/results
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.plot

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

build: $(READY)  ## Build the wheel and the source archive into dist/
	$(BIN)/python -m build

clean:  ## Delete what the tools made, the environment too
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache .coverage htmlcov out.parquet .bench
