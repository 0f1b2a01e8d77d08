# Every target is one to three lines; what needs thought is Python under tools/. `make` alone lists them.

# The first Python >= 3.11 that really starts (a shim without a version behind it does not).
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN := .venv/bin
# One process for each core, one server for all of them; who is done takes tests over from the others. ARGS="-n 0" runs them in line.
SUITE := $(BIN)/pytest -m "not slow" --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo check test unit chaos browser bench bench-full lint types layers docs wheel matrix clean python

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.dev.stamp ## make .venv with everything that the other targets need

demo: .venv/.run.stamp ## see it work: embedded PostgreSQL, a worker, traffic, the dashboard (ARGS="--help" for options)
	$(BIN)/jobrunner demo $(ARGS)

check: lint types layers docs matrix ## all that CI runs; ends with pytest's summary of the whole suite
	$(SUITE) $(ARGS)

test: .venv/.dev.stamp ## every test but the long chaos lane (ARGS="-k claim -x")
	$(SUITE) $(ARGS)

unit: .venv/.dev.stamp ## tests of pure code, seconds
	$(BIN)/pytest tests/unit $(wildcard tests/property) $(ARGS)

chaos: .venv/.dev.stamp ## workers and servers killed under load, the long lane included
	$(BIN)/pytest -m "chaos or slow" $(ARGS)

browser: .venv/.dev.stamp ## the dashboard in a headless Chromium
	$(BIN)/pytest -m browser $(ARGS)

bench: .venv/.dev.stamp ## measure beside bare PostgreSQL and peers, within ten minutes, two more when the peers are not installed yet (ONLY="drain idle", ARGS="--peers celery", ARGS=--help)
	$(BIN)/python -m bench $(ONLY) $(ARGS)

bench-full: .venv/.dev.stamp ## the same at full sizes with every peer everywhere: about two hours
	$(BIN)/python -m bench --full $(ONLY) $(ARGS)

lint: .venv/.dev.stamp ## ruff, all rules
	$(BIN)/ruff check .

types: .venv/.dev.stamp ## mypy, strict
	$(BIN)/mypy

layers: .venv/.dev.stamp ## import-linter: who may import whom
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

docs: .venv/.dev.stamp ## links and anchors of every Markdown file lead somewhere
	$(BIN)/python tools/links.py

wheel: .venv/.dev.stamp ## dist/: the sdist, and the wheel built from it
	$(BIN)/python -m build --no-isolation --outdir dist

matrix: .venv/.dev.stamp ## the smoke subset on old and new Python, Flask, SQLAlchemy, psycopg, PostgreSQL, Celery (ARGS="--only oldest")
	$(BIN)/python -m tools.matrix $(if $(filter matrix,$(MAKECMDGOALS)),$(ARGS))

clean: ## remove environments, caches and builds; the embedded PostgreSQL's data stays
	rm -rf .venv .matrix .bench build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one, or: make PYTHON=/path/to/python3 ..." >&2; exit 1; }

.venv/.run.stamp: pyproject.toml tools/environment.py | python
	$(PYTHON) tools/environment.py run

.venv/.dev.stamp: pyproject.toml tools/environment.py | python
	$(PYTHON) tools/environment.py dev
