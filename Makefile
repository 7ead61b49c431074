# make demo: everything from a fresh machine to a served answer.  make test: the whole test suite.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A package index with CPU-only torch (gigabytes less), for example
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --quiet --index-url $(TORCH_INDEX) 'torch==2.13.*')
	$(PIP) install --quiet -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m optimize.export --quantize
	$(BIN)/python -m serving.demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m loadtest.bench

clean:
	rm -rf $(VENV) artifacts build *.egg-info
