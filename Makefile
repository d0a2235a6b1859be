# `make demo` and `make test` need no preparation. They install everything into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PIP_CONSTRAINT also pins the build backend, which pip installs in an isolated environment.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet

.PHONY: help demo standalone test test-ui lint bench soak chaos simulate compat package clean

help:
	@echo "make demo        run the nightly example DAG in a real Airflow against a real Ray head"
	@echo "make test        run all tests, against a real Ray head and a real Airflow"
	@echo "make test-ui     click through Airflow's web UI in Chromium; with UPDATE_PICTURES=1 take the pictures of the documentation"
	@echo "make standalone  start Airflow with its web UI and a Ray head; Ctrl-C stops both"
	@echo "make lint        run ruff and mypy --strict"
	@echo "make bench       measure speed, memory and load on the head; results in benchmarks/results.json"
	@echo "make soak        run 300 jobs with all kinds of output through a proxy that cuts connections, and 10 minutes of triggers that come and go"
	@echo "make chaos       run an hour of random faults in a real Airflow and Ray: make chaos SEED=7 SECONDS=600"
	@echo "make simulate    run a million simulated histories; with SEED=n the one walk of that seed"
	@echo "make compat      run all tests with another Airflow version: make compat AIRFLOW=3.1.8"
	@echo "make package     build sdist and wheel into dist/"

demo: $(VENV)/demo.stamp
	$(BIN)/python -m sandbox.demo

standalone: $(VENV)/demo.stamp
	$(BIN)/python -m sandbox.standalone

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

test-ui: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/ui

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks

soak: $(VENV)/test.stamp
	SOAK_JOBS=300 SOAK_SECONDS=600 $(BIN)/python -m pytest tests/soak -s

# Without SEED each campaign has a fresh one, which it prints.
SEED ?=
SECONDS ?= 3600
chaos: $(VENV)/test.stamp
	CHAOS_SEED=$(SEED) CHAOS_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/chaos -s

simulate: $(VENV)/test.stamp
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--histories 1000000)
	$(if $(SEED),,$(BIN)/python -m tests.simulation --watches 20000)

# All tests with another supported Airflow: make compat AIRFLOW=3.1.8 AIRFLOW_CONSTRAINTS=<file or URL>
AIRFLOW ?= 3.1.8
AIRFLOW_CONSTRAINTS ?=
compat:
	$(PYTHON) -m venv $(VENV)-$(AIRFLOW)
	$(VENV)-$(AIRFLOW)/bin/pip install --quiet 'apache-airflow==$(AIRFLOW)' 'ray[default]' \
		--requirement requirements-dev.txt $(if $(AIRFLOW_CONSTRAINTS),--constraint $(AIRFLOW_CONSTRAINTS))
	$(VENV)-$(AIRFLOW)/bin/pip install --quiet --no-deps --editable .
	$(VENV)-$(AIRFLOW)/bin/python -m pytest -W default

package: $(VENV)/test.stamp
	$(BIN)/python -m build --outdir dist

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
