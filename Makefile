PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Waiting OpenMP threads sleep instead of spinning: other work on the machine costs little then.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all lint notebooks bench clean

demo: $(INSTALLED)  ## three guides on one model of the bundled digits, with evidence and error bars
	rm -rf runs/demo
	$(BIN)/evidence compare --config experiments/demo.yaml --out runs/demo

test: $(INSTALLED)  ## lint, and every test but the slow ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -m "not slow"

test-all: $(INSTALLED)  ## every test, with the notebooks and the oldest supported dependencies
	$(BIN)/pytest
	$(MAKE) notebooks

lint: $(INSTALLED)  ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(INSTALLED)  ## build and execute notebooks/*.ipynb
	$(BIN)/python notebooks/build.py

bench: $(INSTALLED)  ## speed, side by side with peers, in one run
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/weights_memory.py

clean:
	rm -rf $(VENV) runs build dist

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
