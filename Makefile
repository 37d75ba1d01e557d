# Everything runs in .venv, made here. PYTHON may name another interpreter of 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test check format bench clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

quickstart: $(VENV)/train.done   ## fine-tune SmolLM2-135M with CPS-LoRA, G-LoRA and LoRA at equal budget, and compare
	$(BIN)/localora quickstart

test: $(VENV)/dev.done           ## all tests
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

check: $(VENV)/dev.done          ## linter, formatter, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.done         ## let the formatter and the linter's fixes loose
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[train,plots]'
	touch $@

$(VENV)/dev.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@
