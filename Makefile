PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Waiting OpenMP threads sleep instead of spinning: other work on the machine costs little then.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all test-lowest lint notebooks bench zoo clean

demo: $(INSTALLED)  ## three guides on one model of the bundled digits, with evidence and error bars
	rm -rf runs/demo
	$(BIN)/evidence compare --config experiments/demo.yaml --out runs/demo

test: $(INSTALLED)  ## lint and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

test-all: $(INSTALLED)  ## every test, the notebooks, and the oldest supported dependencies
	$(MAKE) test notebooks test-lowest

test-lowest:  ## the tests with the lower bounds of pyproject.toml (Python 3.11)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		pytest tensorboard --constraint tests/lowest-requirements.txt
	.venv-lowest/bin/python -m pytest -W default  # old libraries warn of each other

lint: $(INSTALLED)  ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(INSTALLED)  ## build and execute notebooks/*.ipynb
	$(BIN)/python notebooks/build.py

bench: $(INSTALLED)  ## speed, side by side with peers, in one run
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/weights_memory.py

zoo: $(INSTALLED)  ## the guides beside known posteriors: tables and pictures
	$(BIN)/python -m experiments.zoo

clean:
	rm -rf $(VENV) runs build dist

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
