# Each command does its set-up: `make demo`, `make demo-loop`, `make test`, `make thorough`. They need Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ROOT ?= demo
SHARE ?= 1
# Two files of tests at a time, each on one core; not the longest files last, whose end one core would wait for.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-loop test thorough sweep sweep-even sweep-odd quick check format clean
.DEFAULT_GOAL := demo

## Show two nights end to end on real digits (about 5 minutes on 2 cores, after the installation). In a bucket:
## make demo ROOT=s3://bucket/prefix STORAGE=s3.endpoint_url=http://127.0.0.1:8333
demo: $(VENV)/.demo
	$(BIN)/drivetrain demo --root $(ROOT) $(if $(STORAGE),--storage $(STORAGE))

## Show the whole loop with two sources: drift, labels, a retrained head, comparison, promotion, a usual night (4 minutes).
demo-loop: $(VENV)/.demo
	$(BIN)/drivetrain demo --loop --root $(ROOT) $(if $(STORAGE),--storage $(STORAGE))

## The tests, with every server they need.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TWO) -m "not thorough"

## What takes minutes: kills, bombs, the whole zoo, and a fifth of all cases of two crashes.
thorough: $(VENV)/.dev
	$(BIN)/python -m pytest $(TWO) -m thorough
	$(MAKE) SHARE=0.2 --jobs 2 sweep-even sweep-odd

## All cases of two crashes (half an hour on one core).
sweep: sweep-even sweep-odd

sweep-%: export SWEEP_SHARE = $(SHARE)
sweep-even: $(VENV)/.dev
	$(BIN)/python -m pytest -s tests/test_sweep.py -k "even or two_commands"
sweep-odd: $(VENV)/.dev
	$(BIN)/python -m pytest -s tests/test_sweep.py -k "not (even or two_commands)"

## The tests that start no server, browser or cluster.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest $(TWO) -m "not slow and not thorough"

## Lint, format, types, floors.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "drivetrain needs Python 3.11; found $$($(PYTHON) --version). Type: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing drivetrain and its pinned dependencies into $(VENV): about 7 GB, several minutes the first time."
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	touch $@
