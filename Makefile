# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A torch that is already installed or that the package index holds as a CPU build is taken as it is; on a machine with a GPU,
# or to use another build, set TORCH, for example `make test TORCH=torch`.
TORCH ?= torch==2.13.0

.PHONY: demo test lint venv clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

clean:
	rm -rf $(VENV) results sample
