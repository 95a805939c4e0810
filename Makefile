# Each target prepares ./.venv by itself (Python >= 3.11 and pip are all it needs); a second run goes straight to work.

# `make PYTHON=/path/to/python3.11` chooses another one. Its full path, because the venv goes first on PATH below.
BASE_PYTHON := $(shell for p in $(or $(PYTHON),python3.11 python3 python); do $$p -c \
	'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)
SHELL := /bin/bash
INSTALLED := .venv/.installed

# The venv first: the `deepspeed` launcher and `ninja` are looked up on PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DS_ACCELERATOR := cpu
export OMP_NUM_THREADS := 1
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults test-mutants test-extras lint format benchmarks test-gpu test-multinode

help:             ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /make \1\t/' | expand -t 22

setup: $(INSTALLED) ## Create ./.venv and install the tested versions (the other targets do it themselves).

demo: $(INSTALLED) ## Teach the tiny model spatial order and depth on two CPU processes; prints before -> after and the report's path.
	bash launch/demo.sh

WORKERS ?= 2

test: lint        ## Lint, then the whole test suite (WORKERS=N processes for the tests that use one core).
	python -m pytest --durations=15 -m 'not faults and not ranks' --numprocesses $(WORKERS) --dist loadfile
	python -m pytest --durations=15 -m 'not faults and ranks'

FAULT_RESULTS := .pytest_cache/fault_results.json
test-faults: $(INSTALLED) ## Kill, cut off, fill, damage: every test of a fault; writes the table of docs/reliability.md.
	python -m pytest -m 'fault or faults' --durations=15 --fault-results=$(FAULT_RESULTS); tests=$$?; \
		python -m tests.faults.write_page $(FAULT_RESULTS) && exit $$tests

test-mutants: $(INSTALLED) ## Plant a fault of one line at a time: do the tests notice? Goes on where it stopped; writes docs/mutants.md (OPTIONS='--sample 40 --seed 7').
	python -m tests.mutants $(OPTIONS)

# A venv of its own: MLflow and gradio need older versions of packages that the tests are pinned to.
test-extras: $(INSTALLED) ## Trackers and the web page with the real packages, pictures with their older Pillow (page: chromium and chromedriver on PATH).
	test -x .venv-extras/bin/python || $(BASE_PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install -e '.[trackers,web]' pytest pytest-timeout hypothesis webdataset selenium
	.venv-extras/bin/python -m pytest -rs tests/monitoring/test_trackers_offline.py tests/inference/test_web.py tests/data/test_pictures.py

lint: $(INSTALLED) ## ruff and mypy.
	ruff check .
	ruff format --check .
	mypy

format: $(INSTALLED) ## Apply ruff's fixes and format.
	ruff check --fix .
	ruff format .

# Only the comparison of loaders needs torchdata.
benchmarks: $(INSTALLED) ## Measure the tables of the documents again, one after another; goes on where it stopped (OPTIONS='--only packed').
	@python -c 'import torchdata' 2>/dev/null || .venv/bin/python -m pip install torchdata
	python -m tests.benchmarks $(OPTIONS)

test-gpu: export DS_ACCELERATOR := cuda
test-gpu: $(INSTALLED) ## Tests and profiles on one NVIDIA GPU (driver 580 or newer); writes docs/gpu.md.
	@python -c 'import torch; torch.cuda.init()'
	python -m pytest tests/gpu
	python -m tests.gpu.measure

test-multinode: $(INSTALLED) ## Train two steps on two network namespaces (root; iproute2, openssh-server, pdsh).
	bash tests/multi_node/run.sh

# A venv without pip (Debian's python3 without python3-venv) is filled by the pip of the Python that made it.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "No Python >= 3.11 found. Type: make setup PYTHON=/path/to/python3.11"; exit 2; }
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv || $(BASE_PYTHON) -m venv --clear --without-pip .venv
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $(BASE_PYTHON) -m pip --python .venv/bin/python install pip
	DS_BUILD_OPS=0 .venv/bin/python -m pip install -c constraints.txt -e '.[test]'
	@touch $@
