# Everything on a fresh machine: `make demo` shows the package at work, `make test` checks it.
# Another interpreter or torch build: make PYTHON=python3.12 TORCH="torch --index-url https://download.pytorch.org/whl/cpu" test
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean

# torch first and pinned: resolved together with the rest, pip may pick a build with gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes of one thread each: faster than one of two. The tests of the app want a browser, and say so when they miss it.
test: lint
	@command -v chromium >/dev/null || echo "chromium is missing: tests of the app in a browser are skipped (apt-get install chromium)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) build dist demo *.egg-info
