# `make train` and `make test` work on a fresh machine with Python: they create the virtual
# environment and install what is missing; what is there is not reinstalled.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= test
ARGS ?=
PYTEST_ARGS ?=

.PHONY: train test test-extras test-lowest test-pythons package bench rehearse accelerator-kit \
	docs docs-links lint format types clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamp depends on the project's metadata, so that a changed dependency is installed.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

train: $(VENV)/installed
	$(BIN)/lrl-jax train $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# What needs optional packages, kills processes or builds many environments. Packages that are not
# installed are skipped, and named in the outcome.
test-extras: $(VENV)/installed
	$(BIN)/python -m pytest -m extras --outcome=benchmarks/results/test-extras.json $(PYTEST_ARGS)

# The oldest versions of the dependencies that pyproject.toml allows.
test-lowest:
	.ci/quick_tests $(PYTHON) lowest

# Other versions of Python than that of $(VENV), where they are installed.
test-pythons:
	for python in python3.11 python3.12 python3.13; do .ci/quick_tests $$python newest || exit 1; done

# Wheel and sdist, tried outside the repository.
package: $(VENV)/installed
	.ci/package

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(ARGS)

# Little is computed, much compiled: without LLVM's optimisations it takes a third of the time.
rehearse: $(VENV)/installed
	XLA_FLAGS="$$($(BIN)/python tests/xla_flags.py)" \
		$(BIN)/python -m benchmarks.accelerator --rehearse --out runs/rehearsal $(ARGS)

accelerator-kit: $(VENV)/installed
	$(BIN)/python -m benchmarks.accelerator.kit $(ARGS)

# Documentation, with warnings as errors. Guides and notebooks run, and are shown with what they print.
$(VENV)/docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html notebooks build/docs

# Asks every address on the web that the documentation links to.
docs-links: $(VENV)/docs
	$(BIN)/python -m sphinx -q -b linkcheck notebooks build/docs-links

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed
	$(BIN)/basedpyright

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .ruff_cache
