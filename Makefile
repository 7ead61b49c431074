# make demo: everything from a fresh machine to a served answer.  make test: the whole test suite.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
# A package index with CPU-only torch (gigabytes less), for example
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test lint bench bench-quick bench-compare peers clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --quiet --index-url $(TORCH_INDEX) 'torch==2.13.*')
	$(PIP) install --quiet -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m optimize.export --quantize
	$(BIN)/python -m serving.demo

# Most tests wait for real servers, so more of them run at once than there are cores; those of a file share theirs.
test: setup
	$(BIN)/python -m pytest -n 4 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of every model that was exported, or of those in MODELS="load_forecast speech".
bench bench-quick: setup
	$(BIN)/python -m loadtest.bench $(if $(MODELS),--model $(MODELS)) $(if $(findstring quick,$@),--quick)

# make bench-compare OLD=before/report.json NEW=artifacts/load_forecast/lstm/report.json
bench-compare: setup
	$(BIN)/python -m loadtest.compare $(OLD) $(NEW)

peers: setup $(PEERS)/.ready
	$(BIN)/python -m loadtest.peers

$(PEERS)/.ready: loadtest/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(if $(TORCH_INDEX),$(PEERS)/bin/python -m pip install --quiet --index-url $(TORCH_INDEX) 'torch==2.13.*')
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) artifacts build *.egg-info
