# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch and torchvision have to be builds that fit each other. Set TORCH for others than the package index offers, for
# example TORCH="torch torchvision --index-url <an index of CPU builds>".
TORCH ?= torch torchvision

SAMPLE ?= sample/MAD

.PHONY: demo test lint venv clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

$(SAMPLE)/toy: | $(VENV)/installed
	$(BIN)/python tools/make_sample_data.py mad $(SAMPLE) --category toy --seed 0 --size 160 --test-good 10 --test-per-defect 5

demo: venv $(SAMPLE)/toy
	$(BIN)/anomalib train --config configs/splatpose_sample.yaml --data.init_args.root $(SAMPLE)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) results sample
