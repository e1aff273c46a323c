# make install | quickstart | test | test-all | lint | support | bench | table | clean
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Without a GPU the CPU build of torch is enough; a newer torch from an index would bring gigabytes of CUDA.
TORCH  ?= torch==2.13.0

.PHONY: install quickstart test test-all lint support bench table clean
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH; give yours: make PYTHON=python3.12 install"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,serve]"
	@touch $(STAMP)

quickstart: install
	$(BIN)/steermoe quickstart

test: install
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python -m pytest -m "slow or not slow"

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

support: install
	$(BIN)/python -m pytest -q tests/encoders tests/llms --support-table docs/support.md

bench: install
	$(BIN)/python benchmarks/bench.py

table: install
	$(BIN)/python benchmarks/steering_table.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
