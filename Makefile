PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt

FIGURES = docs/performance
# Two processes, each with whole files of tests: what a file's tests share is made once.
SIDE_BY_SIDE = -n 2 --dist loadfile

.PHONY: demo test test-all parity-tests check format bench coverage wheel clean

demo: $(VENV)/.run  ## install what an export needs and export hornet_t
	$(BIN)/metaformer-export --model hornet_t --fp16

test: $(VENV)/.dev $(VENV)/.tensorrt $(VENV)/.tritonserver  ## the tests that CI runs
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: $(VENV)/.dev $(VENV)/.tensorrt $(VENV)/.tritonserver  ## all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

parity-tests: $(VENV)/.test  ## models against their authors' and a small export of each family, minutes; engines with a GPU
	sh tests/parity.sh $(BIN)/python

check: $(VENV)/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/metaformer_export
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p metaformer_export

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## every figure of docs/performance.md, hours on a quiet machine; then the mixer ops
	$(BIN)/python benchmarks/portable.py --batch 1 --batch 8 --out $(FIGURES)/portable.json
	$(BIN)/python benchmarks/passes.py --out $(FIGURES)/passes.json
	$(BIN)/python benchmarks/scaling.py --out $(FIGURES)/scaling.json
	$(BIN)/python benchmarks/export_time.py --out $(FIGURES)/export_time.json
	$(BIN)/python benchmarks/export_time.py --option --target --option onnx --out $(FIGURES)/export_time_onnx.json
	$(BIN)/python benchmarks/accuracy.py --out $(FIGURES)/accuracy.json
	$(BIN)/python benchmarks/quantised.py --out $(FIGURES)/quantised.json
	$(BIN)/python benchmarks/fixed_batch.py --out $(FIGURES)/fixed_batch.json
	$(BIN)/python benchmarks/document.py
	$(BIN)/python benchmarks/mixer_ops.py

coverage: $(VENV)/.run  ## every variant through the export, an hour or two; goes on where it was
	$(BIN)/python benchmarks/coverage.py --resume --out docs/coverage.md

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist $(VENV) *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[cpu]"
	touch $@

$(VENV)/.bench: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[cpu,bench]"
	touch $@ $(VENV)/.run

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[cpu,test]"
	touch $@ $(VENV)/.run

# TensorRT's own Python bindings over stub libraries, which its names and arguments are tested against; needs a C compiler.
$(VENV)/.tensorrt: $(VENV)/.dev tests/install_tensorrt_bindings.py
	$(BIN)/python tests/install_tensorrt_bindings.py && touch $@ || \
		test -z "$(CI)"  # without them those tests are skipped, which CI must not be

# A real Triton Inference Server, which model repositories are tested in, with a Python of its own.
$(VENV)/.tritonserver: $(VENV)/.dev tests/install_tritonserver.py
	$(BIN)/python tests/install_tritonserver.py && touch $@ || \
		test -z "$(CI)"  # without it those tests are skipped, which CI must not be

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[cpu,test,dev]"
	touch $@ $(VENV)/.run $(VENV)/.test
