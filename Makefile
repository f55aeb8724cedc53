PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Small networks run up to ten times slower when OpenMP threads spin while they wait.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install demo test test-all lint clean

help:
	@echo "make demo      collect data, train, evaluate, write runs/demo/report.html"
	@echo "make test      the tests"
	@echo "make test-all  the tests, slow ones too"
	@echo "make lint      ruff and mypy"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Convoy needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/convoy demo

test: install
	$(BIN)/python -m pytest -q -m 'not slow'

test-all: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
