# Each target sets up what it needs: `.venv` is made once and reused until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all check docs clean

demo: $(READY)
	$(BIN)/wsimil demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --durations=10

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --durations=10 -m ""

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check wsi_mil
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python -m typer wsi_mil.cli utils docs --name wsimil --output docs/cli.md

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("wsi_mil needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo
