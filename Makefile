# Each command does all the set-up that it needs: `make demo` runs the main job, `make test` passes the tests, and
# `make docs` builds the site in build/site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test tests checks docs clean

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

# The types are checked on the time that tests leave while they wait.
test: $(VENV)/installed-dev
	$(MAKE) --jobs 2 --keep-going tests checks

# Processes that tests start find modules compiled, whatever the environment says of that.
tests: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

checks: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build runs
