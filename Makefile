# `make demo` and `make test` need no preparation. They install everything into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PIP_CONSTRAINT also pins the build backend, which pip installs in an isolated environment.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet

.PHONY: help demo standalone test test-ui lint docs docs-links bench soak chaos simulate test-matrix test-matrix-short test-production test-production-short package clean

help:
	@echo "make demo        run the nightly example DAG in a real Airflow against a real Ray head"
	@echo "make test        run all tests, against a real Ray head and a real Airflow"
	@echo "make test-ui     click through Airflow's web UI in Chromium; with UPDATE_PICTURES=1 take the pictures of the documentation"
	@echo "make standalone  start Airflow with its web UI and a Ray head; Ctrl-C stops both"
	@echo "make lint        run ruff and mypy --strict"
	@echo "make docs        build the documentation site in build/docs; a warning is an error"
	@echo "make docs-links  check the links that lead out of the documentation; needs a network"
	@echo "make bench       measure speed, memory and load on the head; results in benchmarks/results.json"
	@echo "make soak        run 300 jobs with all kinds of output through a proxy that cuts connections, and 10 minutes of triggers that come and go"
	@echo "make chaos       run an hour of random faults in a real Airflow and Ray: make chaos SEED=7 SECONDS=600"
	@echo "make test-production  run the fault cases and random faults on PostgreSQL, Redis and the CeleryExecutor"
	@echo "make test-production-short  run a few of these cases"
	@echo "make simulate    run a million simulated histories; with SEED=n the one walk of that seed"
	@echo "make test-matrix run the tests on other versions of Airflow, Python and Ray: make test-matrix CELLS=airflow-3.1 TESTS=unit"
	@echo "make package     empty dist/, build sdist and wheel into it, and check them"

demo: $(VENV)/demo.stamp
	$(BIN)/python -m sandbox.demo

standalone: $(VENV)/demo.stamp
	$(BIN)/python -m sandbox.standalone

# Two processes: tests/conftest.py says which tests run in which.
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2

test-ui: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/ui

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/test.stamp
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto -b html docs build/docs
	$(BIN)/python -m docs.reading_ease

docs-links: $(VENV)/test.stamp
	$(BIN)/python -m sphinx --quiet -b linkcheck docs build/docs-links

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks

soak: $(VENV)/test.stamp
	SOAK_JOBS=300 SOAK_SECONDS=600 $(BIN)/python -m pytest tests/soak -s

# Without SEED each campaign has a fresh one, which it prints.
SEED ?=
SECONDS ?= 3600
chaos: $(VENV)/test.stamp
	CHAOS_SEED=$(SEED) CHAOS_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/chaos -s

# CASES selects tests as pytest's option -k does.
CASES ?=
test-production: $(VENV)/test.stamp
	AIRFLOW_DEPLOYMENT=production $(BIN)/python -m pytest tests/faults tests/chaos $(if $(CASES),-k "$(CASES)")

# A few cases that exist only there, and 40 s of random faults.
test-production-short: $(VENV)/test.stamp
	CHAOS_SECONDS=40 $(MAKE) test-production CASES='(celery_worker_killed and not grace) or triggerer_of_two or campaign'

simulate: $(VENV)/test.stamp
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--histories 1000000)
	$(if $(SEED),,$(BIN)/python -m tests.simulation --watches 20000)

# Without CELLS all of tests/matrix/cells.py, which takes hours; without TESTS the suite of each cell.
CELLS ?=
TESTS ?=
test-matrix: $(VENV)/test.stamp
	$(BIN)/python -m tests.matrix $(CELLS) $(if $(TESTS),--tests $(TESTS))

# The cells and suites that find most per minute. It records nothing.
test-matrix-short: $(VENV)/test.stamp
	$(BIN)/python -m tests.matrix --short

package: $(VENV)/test.stamp
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) $(VENV)-* build dist

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. Choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing Airflow and Ray into $(VENV) ..."
	$(PIP) --editable '.[ray]'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp requirements-dev.txt
	$(PIP) --requirement requirements-dev.txt
	touch $@
