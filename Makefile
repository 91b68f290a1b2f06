# Each target makes .venv itself when it is missing or older than the pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC calls `python`: it must be the one with the pins, and kernels must find themselves.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test lab lint notebooks
repro: $(VENV)/installed
	$(BIN)/dvc repro

test: $(VENV)/installed
	$(BIN)/python -m pytest

lab: $(VENV)/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# For those who change a notebook: run all anew, in order, and store their outputs for git.
notebooks: repro
	$(BIN)/python -m wavegms refresh $(sort $(wildcard notebooks/0[1-9]*.ipynb)) $(sort $(wildcard notebooks/00*.ipynb))

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
