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

.PHONY: help install train look test check format test-compile test-browser test-distributed test-torch test-gpu gpu \
	benchmark parity lecture config readme soak fuzz endurance audit

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: .venv/installed  ## Make the virtual environment .venv from requirements.lock

train: install  ## Train the lecture's network; pass overrides with ARGS="+experiment=batchnorm seed=2"
	$(BIN)/python scripts/train.py $(if $(ARGS),$(ARGS),+experiment=kaiming)

LOGDIR ?= outputs
look: install  ## TensorBoard of outputs/; a run's dashboard.url has the address with its main cards pinned
	$(BIN)/tensorboard --logdir $(LOGDIR)

test: install  ## Run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: install  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-compile: install  ## Every optimizer, placement and clipping, compiled (about 30 minutes)
	$(BIN)/python -m pytest -m compile tests/test_stride.py $(ARGS)

readme: install  ## Every command of README.md, as written, in a fresh clone (about 10 minutes)
	$(BIN)/python -m pytest -m readme -s tests/test_readme.py $(ARGS)

test-browser: install  ## The report pages in headless chromium, where it is installed
	$(BIN)/python -m pytest -m browser $(ARGS)

test-distributed: install  ## Sweeps on a two-node Ray cluster and through submitit; installs both
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[ray,slurm]"
	$(BIN)/python -m pytest -m distributed $(ARGS)

TORCH ?= 2.14.1

test-torch: .venv-torch-$(TORCH)/installed  ## The tests with another torch, in an environment of its own: TORCH=2.14.1
	.venv-torch-$(TORCH)/bin/python -m pytest -n 2 $(ARGS)

.venv-torch-$(TORCH)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(@D)
	grep -v '^torch==' requirements.lock > $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $(@D)/requirements.txt torch==$(TORCH)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-gpu: install  ## The tests that need a GPU; elsewhere they are skipped
	$(BIN)/python -m pytest -m gpu -rs -W default $(ARGS) tests/test_gpu.py

gpu: install  ## On a machine with a GPU: its tests, then its figures, in 20 minutes (docs/gpu.md)
	$(BIN)/python scripts/gpu.py $(ARGS)

config: install  ## docs/config.md again, from the docstrings of makemore_pl/config/schema.py
	$(BIN)/python scripts/document.py

lecture: install  ## docs/lecture.md again, with its pictures (about 5 minutes)
	$(BIN)/python scripts/lecture.py $(ARGS)

benchmark: install  ## Speed and memory beside the lecture's loop and plain Lightning (about 30 minutes)
	$(BIN)/python scripts/benchmark.py $(ARGS)

parity: install  ## The lecture's published losses and panel, again (about 10 minutes)
	$(BIN)/python scripts/parity.py $(ARGS)

soak: install  ## 200 kills of runs and 30 of sweeps at random moments, nothing lost (about 20 minutes)
	$(BIN)/python -m reliability.soak $(ARGS)

fuzz: install  ## 20,000 generated cases: no traceback, no hang, no silently wrong number (about 15 minutes)
	$(BIN)/python -m reliability.fuzz $(ARGS)

endurance: install  ## 500 jobs in one process and a long run: memory, files and threads; the same numbers everywhere
	$(BIN)/python -m reliability.endurance $(ARGS)

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	touch $@

audit: .venv-audit/installed  ## requirements.lock against known advisories, where there is a network
	.venv-audit/bin/python reliability/audit.py
