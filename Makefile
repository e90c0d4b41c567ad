.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.PHONY: help install train test check format parity

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: .venv/installed  ## Make the virtual environment .venv from requirements.lock

train: install  ## Train the lecture's network; pass overrides with ARGS="+experiment=batchnorm seed=2"
	$(BIN)/python scripts/train.py $(if $(ARGS),$(ARGS),+experiment=kaiming)

test: install  ## Run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: install  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: install  ## The lecture's published losses, again (about 10 minutes)
	$(BIN)/python scripts/parity.py $(ARGS)
