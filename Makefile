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

.PHONY: demo test test-all test-floors lint docs venv clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test,docs]"
	touch $@

demo: venv
	$(BIN)/anomalib-pose demo --root $(SAMPLE)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable hides an advertisement.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAST := not slow and not gpu
# Compiled kernels for the second level of x86-64: no AVX. The name alone would keep the features of this processor.
V2 := NUMBA_CPU_NAME=x86-64-v2 NUMBA_CPU_FEATURES=+sse4.2,+popcnt NUMBA_CACHE_DIR=build/numba-v2

test: lint docs
	$(PYTEST) -m "$(FAST)"

# Everything: slow tests, and the fast ones on other instruction sets and numbers of threads (x86-64 alone has these names).
test-all: lint docs
	$(PYTEST) -m "not gpu"
	ATEN_CPU_CAPABILITY=default NUMBA_NUM_THREADS=1 $(V2) $(PYTEST) -m "$(FAST)"
	ATEN_CPU_CAPABILITY=avx2 NUMBA_NUM_THREADS=2 $(V2) $(PYTEST) -m "$(FAST)"

# A tiny fit and a prediction with the lowest versions that pyproject.toml allows, in an environment of its own.
# UV_ARGUMENTS takes further arguments of uv, for example an index of CPU builds of torch.
test-floors:
	rm -rf $(FLOORS)
	$(PYTHON) -m venv $(FLOORS)/uv
	$(FLOORS)/uv/bin/python -m pip install --quiet uv
	$(FLOORS)/uv/bin/uv venv --quiet --python $(PYTHON) $(FLOORS)/venv
	$(FLOORS)/uv/bin/uv pip install --quiet --python $(FLOORS)/venv/bin/python --resolution lowest-direct \
		$(UV_ARGUMENTS) ".[$(FLOOR_EXTRAS)]"
	$(FLOORS)/venv/bin/python tests/floors/fit_and_predict.py
	rm -rf $(FLOORS)

clean:
	rm -rf $(VENV) results sample
