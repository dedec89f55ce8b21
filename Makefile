# Everything starts from a machine with Python 3.11 and git; the first target that needs it makes .venv.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

PORT ?= 4200

.PHONY: help setup repro serve-flows test test-all test-team dvc-remote check format ui

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/ready  ## the environment, as constraints.txt pins it

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

repro: setup  ## from nothing to a promoted model
	$(BIN)/python -m dvc repro

serve-flows: setup  ## Prefect's server, deployments and a worker, at http://127.0.0.1:4200 (PORT=4200)
	@$(BIN)/python -m flows.serve --port $(PORT)

test: setup  ## the tests
	$(BIN)/python -m pytest

test-all: setup  ## the tests, those that start many processes too
	$(BIN)/python -m pytest -m "not team"

test-team: setup  ## the tests of a team's servers; installs PostgreSQL by apt-get where it is missing
	@ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || apt-get install -y postgresql
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test-team]' -c constraints.txt
	$(BIN)/python -m pytest -m team

dvc-remote: setup  ## point DVC at the remote that team.env names
	@test -n "$(DVC_REMOTE_URL)" || { echo 'DVC_REMOTE_URL is not set: `set -a; . ./team.env; set +a` first'; exit 1; }
	$(BIN)/python -m dvc remote add --local --default --force team $(DVC_REMOTE_URL)

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: setup  ## MLflow's pages at http://127.0.0.1:5000
	$(BIN)/python -m mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db --host 127.0.0.1 --port 5000
