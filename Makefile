# make install | quickstart | test | test-all | lint | support | bench | table | report | tiny | sounds | clean
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Without a GPU the CPU build of torch is enough; a newer torch from an index would bring gigabytes of CUDA.
TORCH  ?= torch==2.13.0

.PHONY: install quickstart test test-all lint support bench table report tiny sounds clean
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

# Everything the adapter that ships is measured on, as one page; what was computed before is kept. `make sounds` adds the adapter for sounds.
RUNS  ?= runs/report
SCORE  = $(BIN)/steermoe evaluate
report: install
	$(SCORE) --suite text --out $(RUNS)/text
	$(SCORE) --data fotaq:test --baseline --heard --out $(RUNS)/fotaq
	$(SCORE) --data asterisk:test --baseline --heard --out $(RUNS)/asterisk
	$(SCORE) --data synth:unheard --heard --out $(RUNS)/unheard
	$(SCORE) --suite robustness --data fotaq:valid --out $(RUNS)/robustness
	$(SCORE) --suite silence --baseline --out $(RUNS)/silence
	$(SCORE) --suite silence --data sounds:test --out $(RUNS)/quiet-sounds
	$(SCORE) --data librivox --baseline --heard --out $(RUNS)/librivox
	$(SCORE) --suite gap --out $(RUNS)/gap
	$(SCORE) --suite tools --tool-choice required --data home --limit 250 --out $(RUNS)/home
	$(SCORE) --suite tools --tool-choice required --data bfcl --limit 250 --out $(RUNS)/bfcl
	$(BIN)/steermoe report $(addprefix $(RUNS)/,text fotaq asterisk unheard robustness silence quiet-sounds librivox gap home bfcl) \
		$(wildcard $(RUNS)/sounds-static $(RUNS)/sounds) --play $(RUNS)/librivox --play $(RUNS)/gap \
		--title "tiny, measured" --out docs/report.html

# The adapter that ships, from nothing but text: the voices it needs are made first (about 3.5 hours of one core), then three runs.
tiny: install
	$(BIN)/steermoe train recipes/tiny-1-steering.yaml
	$(BIN)/steermoe train recipes/tiny-2-words.yaml
	$(BIN)/steermoe train recipes/tiny-3-phones.yaml
	$(BIN)/python -c 'from steermoe.adapter import halve; halve("runs/tiny-3-phones/adapter", "runs/tiny")'

# The paper's comparison on sounds that are no words: steered against static.
sounds: install
	$(BIN)/steermoe train recipes/sounds.yaml out=runs/sounds
	$(BIN)/steermoe train recipes/sounds.yaml out=runs/sounds-static model.steer=false
	$(SCORE) --suite aqa --data sounds:test --adapter runs/sounds/adapter --out $(RUNS)/sounds
	$(SCORE) --suite aqa --data sounds:test --adapter runs/sounds-static/adapter --out $(RUNS)/sounds-static

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
