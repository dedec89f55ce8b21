# Everything starts from a machine with Python 3.11, 3.12 or 3.13 and git; the first target that needs it makes .venv.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export GOMP_SPINCOUNT ?= 10000

PORT ?= 4200
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)
# A file's tests stay together: they share what takes long to make. More than 8 workers would wait for the longest file.
PYTEST := python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
UNIT_TESTS := $(addprefix tests/,utils audio media corpora clips losses model evaluation reports test_config.py)

.PHONY: help setup repro serve-flows test test-newest test-all test-gpu test-team test-cluster dvc-remote notifications check format ui

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/ready  ## install the environment that constraints.txt pins

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[dev]' -c constraints.txt
	touch $@

repro: setup  ## run all stages, first those of the promoted models, and print their scores
	@$(BIN)/clip4vla params
	$(BIN)/python -m dvc repro promote
	$(BIN)/python -m dvc repro
	$(BIN)/clip4vla summary

serve-flows: setup  ## Prefect's server, deployments and a worker, at http://127.0.0.1:4200 (PORT=4200)
	@$(BIN)/python -m flows.serve --port '$(PORT)'

test: setup  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

test-newest:  ## run the unit tests on the newest supported Python of pyenv, where it is another one
	@newest=$$(ls -d $(PYENV)/versions/3.1[123]*/bin/python3 2>/dev/null | sort -V | tail -n 1); \
	if [ -z "$$newest" ] || [ "$$($$newest -V)" = "$$($(PYTHON) -V)" ]; then echo 'there is no newer Python here'; \
	else $(MAKE) PYTHON=$$newest VENV=.venv-newest setup && OMP_NUM_THREADS=1 .venv-newest/bin/$(PYTEST) $(UNIT_TESTS); fi

test-all: setup  ## run the tests, with those that start many processes
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "not team and not cluster and not gpu"

test-gpu: setup  ## run the tests of a GPU
	$(BIN)/python -m pytest -m gpu

test-team: setup  ## run the tests of a team's servers; installs PostgreSQL by apt-get where it is missing
	@ls /usr/lib/postgresql/*/bin/postgres > /dev/null 2>&1 || apt-get install -y postgresql
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test-team]' -c constraints.txt
	$(BIN)/python -m pytest -m team

test-cluster: setup  ## run the tests of several nodes, as root; installs Slurm, sshd and pdsh by apt-get where missing
	@for program in slurmctld slurmd munged sshd pdsh ip; do command -v $$program > /dev/null || exec env \
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge openssh-server pdsh iproute2; done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

dvc-remote: setup  ## point DVC at the remote that team.env names
	@test -n "$$DVC_REMOTE_URL" || { echo 'DVC_REMOTE_URL is not set: `set -a; . ./team.env; set +a` first'; exit 1; }
	$(BIN)/python -m dvc remote add --local --default --force team "$$DVC_REMOTE_URL"

notifications: setup  ## have Prefect send failures, decisions and missed runs to the address that team.env names
	@$(BIN)/python -m flows.notifications

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: setup  ## MLflow's pages
	@echo 'MLflow is at http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	$(BIN)/python -m mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db --host 127.0.0.1 --port 5000
