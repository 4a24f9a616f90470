# make run    train on the demo in an environment of its own
# make test   lint, types, and the tests of minutes
# make test-slow, make test-exhaustive   the other tests
# The first Python of a version that pyproject.toml accepts.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell $(name) -c \
    'import sys; sys.version_info[:2] == (3, 11) and print("$(name)")' 2>/dev/null)))
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

export PATH := $(BIN):$(PATH)
# Nothing reports home, and Git's absence is no warning.
export GIT_PYTHON_REFRESH := quiet
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: run test lint test-slow test-exhaustive clean

run: $(VENV)/.installed
	mlflow run . --env-manager local -P model=resnet18 -P modality=A
	@echo "             (commands of this environment: source .venv/bin/activate)"

test: $(VENV)/.installed-dev lint
	python -m pytest

lint: $(VENV)/.installed-dev
	ruff format --check .
	ruff check .
	mypy

test-slow: $(VENV)/.installed-dev
	python -m pytest -m "slow and not exhaustive"

test-exhaustive: $(VENV)/.installed-dev
	python -m pytest -m exhaustive

# One pip call installs torch with what needs it, so that pip takes a single build of it.
$(VENV)/.installed: requirements.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
	    { echo "error: Python 3.11 not found; install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
