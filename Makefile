# Two commands matter: `make reproduce` (the paper's Figure 2 from your own run) and `make test`.
# Both create .venv by themselves; nothing needs to be installed by hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NATIVE := $(wildcard native/CMakeLists.txt native/src/*)
OUT    ?= results
PRESET ?= quick
EXPERIMENT ?= one-layer
JOBS   ?= 1

.PHONY: help setup reproduce test test-slow check format bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce   train, measure and draw the paper's Figure 2 into $(OUT)/one-layer"
	@echo "                 (PRESET=smoke|quick|paper, EXPERIMENT=two-layer|..|all; 'innerloop list' has them all;"
	@echo "                 EXPERIMENT='two-layer sine' JOBS=2: several, two at a time)"
	@echo "make test        run the tests"
	@echo "make test-slow   run the slow scientific checks, and those of bits and kernels with all of XLA's optimisations"
	@echo "make check       lint and type-check (ruff, pyright)"
	@echo "make bench       time training and its scaling (REFERENCE=path: beside the published code; QUICK=1: fewer sizes)"
	@echo "make docs        build the API pages into docs/api"

setup: $(READY)

$(READY): pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "innerloop needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

reproduce: setup
	$(BIN)/innerloop reproduce $(EXPERIMENT) --preset $(PRESET) --out $(OUT) --jobs $(JOBS)

test: setup
	$(BIN)/python -m pytest -n auto --dist loadscope

test-slow: export JAX_DISABLE_MOST_OPTIMIZATIONS = false
test-slow: setup
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -n auto --dist loadscope $(wildcard tests/test_native*.py) tests/test_kernels.py \
	    tests/test_training.py tests/test_runs.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.training_step $(if $(REFERENCE),--reference $(REFERENCE))
	$(BIN)/python -m benchmarks.scaling $(if $(QUICK),--quick)

docs: setup
	$(BIN)/pdoc --math --docformat google --output-directory docs/api innerloop

clean:
	rm -rf $(VENV) docs/api .pytest_cache .ruff_cache .hypothesis .benchmarks
