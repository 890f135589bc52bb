# Each target sets up what it needs: `.venv` is made once and reused until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= $(BIN)/python
READY := $(VENV)/.ready
# As many workers as there are cores, of one thread each: more threads would only fight over them. Neighbouring tests stay
# on one worker, which makes their fixtures once. Bytecode is kept, also where the environment says not to: some tests
# start processes, which would compile everything anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all gpu-check gpu-check-encoders check docs clean

demo: $(READY)
	$(BIN)/wsimil demo

test: $(READY)
	$(PYTEST) --durations=10

test-all: $(READY)
	$(PYTEST) --durations=10 -m ""

# Agreement with the definition, then speed and memory where they matter. Asks of its Python only what attention needs:
# no fixtures, no check of shapes.
gpu-check: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	mkdir -p gpu-check
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -o addopts= -m gpu --noconftest --durations=10 tests/test_attention*.py
	PYTHONPATH=. $(GPU_PYTHON) examples/bench_attention.py --device cuda --dtypes bfloat16 --heads 8 --phi shared \
		--sizes 16384 65536 100000 --forward-sizes --backends triton tiled --seconds 15 \
		--out gpu-check > gpu-check/attention.md
	cat gpu-check/attention.md

# The same of encoders, and of how they are fed: needs all that wsimil needs.
gpu-check-encoders: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY))
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -o addopts= -m gpu --noconftest tests/test_encoders.py tests/test_encoders_feeder.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check wsi_mil
	$(BIN)/lint-imports
	$(BIN)/python .ci/audit.py

docs: $(READY)
	$(BIN)/python -m typer wsi_mil.cli utils docs --name wsimil --output docs/cli.md
	$(BIN)/python docs/aggregators.py > docs/aggregators.md
	$(BIN)/python docs/encoders.py > docs/encoders.md

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("wsi_mil needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing wsi_mil and what its tests and examples need into $(VENV): some minutes'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo gpu-check
