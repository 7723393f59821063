# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch and torchvision have to be builds that fit each other. Set TORCH for others than the package index offers, for
# example TORCH="torch torchvision --index-url <an index of CPU builds>".
TORCH ?= torch torchvision

SAMPLE ?= sample/MAD
FLOORS ?= .floors
FLOOR_EXTRAS ?= colmap,mesh,clip

.PHONY: demo test test-floors lint venv clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

demo: venv
	$(BIN)/anomalib-pose demo --root $(SAMPLE)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A tiny fit and a prediction with the lowest versions that pyproject.toml allows, in an environment of their own.
# FLOOR_EXTRAS=openvino,colmap,mesh,clip exports a model too, and needs a later torch; UV_ARGUMENTS takes further arguments, for example an index of CPU builds of torch.
test-floors:
	rm -rf $(FLOORS)
	$(PYTHON) -m venv $(FLOORS)/uv
	$(FLOORS)/uv/bin/python -m pip install --quiet uv
	$(FLOORS)/uv/bin/uv venv --quiet --python $(PYTHON) $(FLOORS)/venv
	$(FLOORS)/uv/bin/uv pip install --quiet --python $(FLOORS)/venv/bin/python --resolution lowest-direct $(UV_ARGUMENTS) \
		".[$(FLOOR_EXTRAS)]"
	$(FLOORS)/venv/bin/python tests/floors/fit_and_predict.py
	rm -rf $(FLOORS)

clean:
	rm -rf $(VENV) results sample
