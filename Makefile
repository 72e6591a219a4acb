# `make` lists the commands. The first one that needs it makes .venv from requirements.lock; after that it costs nothing.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Its programs name the folder that it was made in. Where that was moved or copied since, it is made anew.
HERE := $(shell cd $(VENV) 2> /dev/null && pwd -P)
ifneq ($(HERE),$(shell cat $(READY) 2> /dev/null))
$(READY): anew
endif
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # as images of containers set it: each start would compile every package anew
SHELL := /bin/bash  # other than make's own, or Apple's make would look programs up in the PATH that it was started with

.PHONY: help demo repro test test-all soak check ui table lock clean anew

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## the whole pipeline on built-in data, some two minutes; no download but the packages
	onecycle demo

repro: $(READY)  ## the whole pipeline on CIFAR-10 as params.yaml says (dvc repro)
	dvc repro

test: $(READY)  ## the tests
	pytest $(PARALLEL)

test-all: $(READY)  ## the tests, slow ones too
	pytest $(PARALLEL) -m ""

soak: $(READY)  ## 20 queued experiments whose processes are killed at random; half an hour at most
	python tests/soak.py

check: $(READY)  ## lint, formatting, types
	ruff check .
	ruff format --check .
	mypy

ui: $(READY)  ## browse the runs in MLflow
	onecycle ui

# What `make table` leaves out: figures that say less than those beside them, and hashes of files.
DROPPED := results/train/metrics.json:epochs|kept_epoch|(train|validation|test)_loss|(min|last)_lr|accuracy_|top|macro_|wrong
DROPPED := $(DROPPED)|brier|images$$|n$$|(mean|std)\.|parameters|dataset_digest|data/|models/|results/.*/[^:]*$$|params.yaml$$
DROPPED := $(DROPPED)|results/lr_range|accepted|method|criterion|reason|advice

table: $(READY)  ## experiments beside each other, the columns that matter (dvc exp show has 150)
	dvc exp show --only-changed --drop '$(DROPPED)'

lock: $(READY)  ## pin all packages anew, for every platform, from pyproject.toml
	uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url \
	  --upgrade --quiet --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean:  ## remove .venv; results and data stay
	rm -rf $(VENV)

# uv does the installing; pip only fetches uv itself, as the lock pins it.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python 3.11 to 3.14 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@if [ -s $(READY) ] && [ "$$(cat $(READY))" != "$(HERE)" ]; then rm -rf $(VENV); fi
	@$(VENV)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@awk '/^[A-Za-z0-9]/ { wanted = /^uv==/ } wanted' requirements.lock > $(VENV)/uv.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.lock
	@echo "installing the packages of requirements.lock into $(VENV)"
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	@cd $(VENV) && pwd -P > .ready
