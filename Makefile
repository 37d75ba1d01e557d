# Everything runs in .venv, made here. PYTHON may name another interpreter of 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-fast golden-losses test-lower-bounds check format bench bench-cuda theory ordeal results architecture docs clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

quickstart: $(VENV)/train.done   ## fine-tune SmolLM2-135M with CPS-LoRA, G-LoRA and LoRA at equal budget, and compare
	$(BIN)/localora quickstart

# Two workers, each with one thread and whole files, since a file's tests share what is slow to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/dev.done           ## all tests
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/dev.done      ## the tests that start no process and train no model to the end: within two minutes
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

golden-losses: $(VENV)/dev.done  ## tests/golden_losses.json again for this platform, after a change that is meant to alter training
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/golden_losses.py

check: $(VENV)/dev.done          ## linter, formatter, types, which way imports run, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/train.done        ## time and memory beside PEFT's LoRA, on a quiet machine; resumable; BENCH_ARGS='--only training'
	$(BIN)/python -m benchmarks.speed $(BENCH_ARGS)

bench-cuda: $(VENV)/train.done   ## the same on a CUDA card, in bfloat16, eager and compiled; begins nothing after seven minutes; resumable
	$(BIN)/python -m benchmarks.speed --device cuda --random --cells bf16 --minutes 7 --only training compile $(BENCH_ARGS)

theory: $(VENV)/dev.done         ## planted teachers: how many parameters each method needs; resumable
	$(BIN)/python -m benchmarks.theory $(THEORY_ARGS)

ordeal: $(VENV)/dev.done         ## kills, full disks, second writers, damaged files, hostile code; ORDEAL_ARGS='--short'
	$(BIN)/python -m benchmarks.ordeal $(ORDEAL_ARGS)

results: $(VENV)/train.done      ## the reports in results/ again, from their records
	$(BIN)/python -m benchmarks.results

# Three things differ on the oldest versions: transformers 5.0 warns in reentrant checkpointing, PEFT 0.20 where it finds
# no config of the base model, and torch 2.6 rounds otherwise, which on a toy without structure is enough for another,
# equally good, co-clustering.
test-lower-bounds:               ## the core's tests on the oldest versions pyproject.toml admits
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -q -r tests/lower-bounds.txt
	.venv-oldest/bin/python -m pip install -q --no-deps -e .
	.venv-oldest/bin/python -m pytest -q tests/placement/test_partition.py tests/placement/test_budget.py \
		tests/placement/test_taylor.py tests/placement/test_sketch.py tests/adapter/test_parity.py \
		tests/adapter/test_saving.py tests/adapter/test_merging.py tests/lifecycle/test_calibration.py tests/export \
		-k 'not (same_placement and cps) and not (reference and reentrant)' \
		-W 'ignore:Could not find a config file'

docs: $(VENV)/dev.done           ## the documentation as a site in site/, every link checked; DOCS_ARGS=serve shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(DOCS_ARGS),build --strict)

architecture: $(VENV)/dev.done   ## docs/architecture.md again, from the docstrings
	$(BIN)/python -m tools.architecture

format: $(VENV)/dev.done         ## let the formatter and the linter's fixes loose
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and caches
	rm -rf $(VENV) .venv-oldest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[train]'
	touch $@

$(VENV)/dev.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@
