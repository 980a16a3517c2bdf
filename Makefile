# Everything on a fresh machine: `make demo` shows the package at work, `make test` checks it.
# Another interpreter or torch build: make PYTHON=python3.12 TORCH="torch --index-url https://download.pytorch.org/whl/cpu" test
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint coverage audit sbom clean

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

# What the tests run of each package; of programs that they start as processes of their own, nothing counts.
coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov=hybrid --cov=restore --cov=medical --cov=apps --cov-report=json:build/coverage.json
	$(BIN)/python -m benchmarks.coverage_by_package build/coverage.json

# Tools in an environment of their own: what they need is no dependency of the product.
$(VENV)/tools/.installed: $(STAMP)
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

# Known vulnerabilities of the pinned versions, as PyPI tells them; a version that it does not know is a failure (--strict).
audit: $(VENV)/tools/.installed
	{ cat constraints.txt; echo "$(firstword $(TORCH))"; } > $(VENV)/tools/pinned.txt
	$(VENV)/tools/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/tools/pinned.txt

sbom: $(VENV)/tools/.installed
	mkdir -p build
	$(VENV)/tools/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.json

clean:
	rm -rf $(VENV) build dist demo *.egg-info
