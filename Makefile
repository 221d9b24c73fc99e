# Everything below sets itself up: a virtual environment in .venv, installed from hashed lock files.
# Needs Python 3.11 or later (with venv), make and npm; no root, no Docker, no AWS account.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
IMAGE  ?=
COUNT  ?= 100000

.PHONY: help demo test fuzz conformance lint format bench pictures lock clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run  ## the whole life of an encrypted photo on this machine; IMAGE=photo.jpg for your own
	@$(BIN)/necli demo $(if $(IMAGE),"$(IMAGE)")

test: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest tests --ignore=tests/conformance -n 2 --dist loadfile

fuzz: $(VENV)/.dev  ## hostile inputs, 100,000 for each parser that such bytes reach; COUNT=n for others
	PYTHONPATH=enclave_payload/src:. $(BIN)/python -m tests.fuzz --count $(COUNT)

conformance: $(VENV)/.dev  ## the tests against the real tools; says what it skips
	$(BIN)/python -m pytest tests/conformance

lint: $(VENV)/.dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.run  ## the benchmarks: ratios, side by side in one run
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/eif_measure.py

pictures: $(VENV)/.run  ## make the README's pictures anew, from the commands that it names
	$(BIN)/python docs/pictures.py

lock: $(VENV)/.dev  ## resolve the lock files anew (needs uv on PATH)
	requirements/lock.sh

clean:  ## remove the virtual environment and caches, not necli's state
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "make: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12"; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# The stamps are made last: an install that was cut off is begun again.
$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/python
	@echo "installing what necli needs (TensorFlow is most of it; about a minute)"
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	@echo "installing what the tests need"
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
