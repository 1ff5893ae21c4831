# Everything here needs make and Python 3.11 or later with venv; the rest it installs into .venv by itself.
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

# Byte code is written at first use (see INSTALL): without it every process would compile all of torch anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKS_READY := $(VENV)/.checks-ready
FOLDERS := protocol privacy models client server simulations
# Byte code is made at first use: of torch's thousands of modules few are ever imported.
INSTALL := $(BIN)/python -m pip install --no-compile --disable-pip-version-check --no-input --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-all lint types bench audit frontier clean

help:
	@echo 'make run        train on MovieLens-100K and write the report (ARGS="--preset open" passes options)'
	@echo 'make setup      the environment alone, in .venv'
	@echo 'make test       the tests; make test-all adds the long proofs'
	@echo 'make lint       style; make types: type checks'
	@echo 'make bench      speed and memory of the engine (ARGS="--data-path FOLDER")'
	@echo 'make audit      plant every bug that the audit must catch, and 100 clean runs (about 20 minutes)'
	@echo 'make frontier   quality against epsilon, both units (ARGS="--dataset ml-1m --data-path FOLDER"); hours'
	@echo 'make clean      remove the environment and what tools left; runs and data stay'
	@echo
	@echo 'PYTHON=...      the Python to start from, 3.11 or later (now: $(PYTHON))'
	@echo 'TORCH_INDEX=... an extra package index to take torch from, such as that of its CPU builds'

setup: $(READY)

run: $(READY)
	$(BIN)/fedrecall run $(ARGS)

# One thread a worker: two workers with two threads each get in each other's way.
test: $(CHECKS_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow' $(ARGS)

test-all: $(CHECKS_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(CHECKS_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The tree of links gives the folders at the root the import names that they have once installed.
types: $(CHECKS_READY)
	@mkdir -p .types/fedrecall
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder .types/fedrecall/$$folder; done
	@for own in __init__.py py.typed api cli; do ln -sfn ../../fedrecall/$$own .types/fedrecall/$$own; done
	MYPYPATH=.types $(BIN)/mypy -p fedrecall

bench: $(READY)
	$(BIN)/python benchmarks/engine.py $(ARGS)

# One thread a process, as for the tests.
audit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m fedrecall.simulations.audit $(ARGS)

frontier: $(READY)
	$(BIN)/python -m fedrecall.simulations.studies.frontier $(ARGS)

clean:
	rm -rf $(VENV) .types .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'fedrecall needs Python 3.11 or later: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that a CPU build is settled before anything else asks for torch.
$(READY): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') setuptools torch
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(CHECKS_READY): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[test,dev]'
	@touch $@
