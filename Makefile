PYTHON ?= python3
PYTHON_NEWER ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Waiting OpenMP threads sleep instead of spinning: other work on the machine costs little then.
export OMP_WAIT_POLICY ?= PASSIVE

# A worker per core, each with one thread and about 1 GB of memory.
WORKERS := --numprocesses=logical --maxprocesses=8 --dist=worksteal

.PHONY: demo test types test-slow test-long test-all test-lowest test-newer test-graders lint course planted bench bench-evidence bench-peers zoo clean

demo: $(INSTALLED)  ## three guides on one model of the bundled digits, with evidence and error bars
	rm -rf runs/demo
	$(BIN)/evidence compare --config experiments/demo.yaml --out runs/demo

test: $(INSTALLED)  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types
	$(BIN)/pytest $(WORKERS) -m "not slow"

# A type checker cannot follow the path that evidence/__init__.py extends: it reads the wheel.
types: $(INSTALLED)  ## types
	rm -rf build/typed
	$(BIN)/python -m hatchling build --target wheel --directory build/typed
	$(BIN)/python -m zipfile -e build/typed/*.whl build/typed
	$(BIN)/ty check --python $(VENV) build/typed/evidence

test-slow: $(INSTALLED)  ## the tests that `make test` leaves out
	$(BIN)/pytest $(WORKERS) -m "slow and not long"

test-long: $(INSTALLED)  ## the tests that take minutes each
	$(BIN)/pytest $(WORKERS) -m long

test-all: $(INSTALLED)  ## every test, the course, oldest dependencies, ArviZ 1.x, graders
	$(MAKE) test test-slow test-long course test-lowest test-newer test-graders

test-lowest:  ## the tests with the lower bounds of pyproject.toml (Python 3.11)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		dynesty hatchling pytest pytest-xdist tensorboard --constraint tests/lowest-requirements.txt
	.venv-lowest/bin/python -m pytest $(WORKERS) -W default  # old libraries warn of each other

test-newer:  ## the export and all that asks ArviZ, with ArviZ 1.x (Python 3.12 or newer)
	test -x .venv-newer/bin/python || $(PYTHON_NEWER) -m venv .venv-newer
	.venv-newer/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		pytest pytest-xdist tensorboard "arviz>=1"
	.venv-newer/bin/python -m pytest $(WORKERS) -W default \
		tests/test_arviz_export.py tests/test_estimators.py tests/test_adaptive.py \
		tests/test_reference.py tests/test_calibration.py \
		tests/test_export_command.py tests/test_reference_command.py \
		tests/test_defensive.py tests/test_bridge.py -m "not slow"

# The wheel is made and installed as students do it, by docs/teaching.md.
WHEELS := build/wheels
GRADERS := .venv-graders/bin/python -m pip --quiet --quiet --disable-pip-version-check
test-graders:  ## the course's formats, with nbgrader and Otter themselves
	test -x .venv-graders/bin/python || $(PYTHON) -m venv .venv-graders
	rm -rf $(WHEELS)
	@$(GRADERS) wheel --no-deps --wheel-dir $(WHEELS) . \
		&& $(GRADERS) install "$$(echo $(WHEELS)/*.whl)[notebooks]" jupyterlab nbgrader otter-grader pytest \
		&& $(GRADERS) install --no-deps --force-reinstall $(WHEELS)/*.whl \
		&& test -x .venv-graders/bin/nbgrader && test -x .venv-graders/bin/otter \
		|| { echo "error: pip has no nbgrader or Otter here: NO grader was tested" >&2; exit 1; }
	PATH="$(CURDIR)/.venv-graders/bin:$$PATH" .venv-graders/bin/python -m pytest \
		-W default -m slow tests/test_graders.py

lint: $(INSTALLED)  ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Students' notebooks, solutions, pages, pictures and the graders' formats; NAMES for some of them,
# INSTALL for what pip is to install on machines that lack the suite (the clone's origin on GitHub).
course: $(INSTALLED)  ## build and execute the course into build/course
	$(BIN)/python notebooks/build.py --jobs 2 $(NAMES) $(if $(INSTALL),--install "$(INSTALL)")

planted: $(INSTALLED)  ## errors planted in the estimators, and which check catches each
	$(BIN)/python -m tests.planted_errors

bench: $(INSTALLED)  ## speed beside peers, alternated in one run: runs/bench/speed.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --out runs/bench

bench-evidence: $(INSTALLED)  ## every estimator on every problem of known evidence (hours)
	$(BIN)/evidence bench --seeds 20 --out runs/bench

bench-peers: $(INSTALLED)  ## marginal likelihoods beside dynesty's and R's (an hour)
	$(BIN)/python benchmarks/evidence_peers.py

zoo: $(INSTALLED)  ## the guides beside known posteriors: tables and pictures
	$(BIN)/python -m evidence.experiments.zoo

clean:
	rm -rf $(VENV) runs build dist

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
