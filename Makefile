# Everything a newcomer or CI runs. Each target does all of its own set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most tests wait for processes, so more of them than cores run at once; each file stays in one
# process. Every process of the last line has a broker of 400 MB.
JOBS ?= 4
PYTEST := $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile
SLOWEST_FIRST := tests/acceptance tests/integration tests/contract tests/compat
STAMP := $(VENV)/.installed

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Backhaul needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages into $(VENV) (a minute or two the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo]'
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## Make .venv with pinned versions and the command .venv/bin/backhaul

.PHONY: demo
demo: install ## Start everything, run a sample batch of 200 lines, show where the results are
	@$(BIN)/backhaul demo

.PHONY: lint
lint: install ## Formatting, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.PHONY: unit
unit: install ## Tests without a broker
	$(PYTEST) tests/unit tests/contract

.PHONY: test
test: lint ## Lint, types and every test, on a real Apache Kafka where Docker or Java + Maven are
	$(PYTEST) tests/unit --cov --cov-report=term-missing:skip-covered
	$(PYTEST) --no-loadscope-reorder $(SLOWEST_FIRST)

.PHONY: chaos
chaos: install ## The long form of fault injection: kill -9 and SIGSTOP under load
	$(BIN)/pytest tests/acceptance tests/integration -m chaos -s --timeout=3600

.PHONY: bench
bench: install ## Measure CPU per line, lines/s, validation MB/s, latency and memory
	$(BIN)/python -m tests.bench

.PHONY: bench-yield
bench-yield: install ## What batch takes beside real-time calls, and what they feel of it (virtual time)
	$(BIN)/python -m tests.bench.yield_bench $(ARGS)

.PHONY: format
format: install ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: clean
clean: ## Remove what the targets above made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
