# Every target sets up .venv when it is missing or out of date. `make demo` and `make test` are the README's two commands.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))
BIN := .venv/bin
READY := .venv/ready
PYTEST := $(BIN)/python -m pytest
TWO := -n 2 --dist worksteal
# Files with a test of a mark that few have: to collect all takes ten seconds.
MARKED = $(shell grep -rlw --include='test_*.py' 'mark\.$(1)' tests)
DEMO := runs/demo
SEEDS ?= 1

.PHONY: help setup demo test slow distributed exhaustive vllm vllm-setup gpu bench bench-gpu oracle lint format types build docs-setup docs docs-serve clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## a virtual environment in .venv with the tested versions and this package, editable

$(READY): pyproject.toml constraints.txt
	@echo 'Setting up .venv (about two minutes the first time)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lora]'
	@touch $@

demo: $(READY)  ## SFT, DPO and online DPO with a small model on a made-up task, three to six minutes; SEEDS=3: with intervals
	HF_HUB_OFFLINE=1 $(BIN)/lion demo $(DEMO)
	HF_HUB_OFFLINE=1 $(BIN)/lion run configs/pipeline.yaml --seeds $(shell seq 0 $$(($(SEEDS) - 1)))
	@echo 'Talk to the model: $(BIN)/lion chat runs/pipeline/seed-0/online_dpo/export'

test: $(READY)  ## the default tests: no network, no GPU, about two minutes
	$(PYTEST) $(TWO)

slow: $(READY)  ## what takes long or starts processes: packaging, pipelines, kills, a real model
	$(PYTEST) $(TWO) -m 'slow and not exhaustive and not distributed and not vllm and not gpu' --timeout 600

distributed: $(READY)  ## two ranks and more, over gloo
	$(PYTEST) -n 2 --dist loadfile -m 'distributed and not exhaustive and not vllm and not gpu' --timeout 300 $(call MARKED,$@)

exhaustive: $(READY)  ## more cases of the kinds that the other tests show; CI runs them once a week
	$(PYTEST) $(TWO) -m 'exhaustive and not vllm and not gpu' --timeout 900

gpu: $(READY)
	$(PYTEST) -m $@ --timeout 600

bench: $(READY)  ## the benchmarks against TRL on this CPU, under 15 minutes; leave the machine alone meanwhile
	$(BIN)/python benchmarks/bench.py

# A GPU machine often has a Python with its own torch: make bench-gpu PYTHON_GPU=python3
PYTHON_GPU ?= $(BIN)/python

bench-gpu:  ## parity, speed and memory on a GPU, against TRL where it is installed: under ten minutes
	$(PYTHON_GPU) benchmarks/gpu.py

# vLLM pins torch and much else, so it has a separate environment. INSTALL_VLLM is a script that installs a build of it.
INSTALL_VLLM ?= $(wildcard ../shared/tools/install_vllm_cpu.sh)

.venv-vllm/ready: pyproject.toml constraints.txt
	@echo 'Setting up .venv-vllm (about four minutes the first time)'
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lora]'
	PATH="$(CURDIR)/.venv-vllm/bin:$$PATH" bash '$(INSTALL_VLLM)'
	@touch $@

vllm-setup: $(if $(INSTALL_VLLM),.venv-vllm/ready)

vllm: vllm-setup  ## the tests with a real vLLM, in a separate environment
ifeq ($(INSTALL_VLLM),)
	@echo 'make vllm: no script to install vLLM with; name one: make vllm INSTALL_VLLM=script.sh'
else
	.venv-vllm/bin/python -m pytest -m 'vllm and not exhaustive' --timeout 600 $(call MARKED,$@)
endif

# Nothing but what the oracle needs, in the versions of constraints.txt.
.venv-oracle/ready: pyproject.toml constraints.txt benchmarks/oracle/requirements.txt
	@echo 'Setting up .venv-oracle (about two minutes the first time)'
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/pip install --quiet --disable-pip-version-check -r benchmarks/oracle/requirements.txt -e .
	@touch $@

ORACLE := --page docs/oracle.md --results benchmarks/results/oracle.json

oracle: .venv-oracle/ready  ## each objective beside TRL's trainers and loops by hand, step by step: five minutes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-oracle/bin/python -m benchmarks.oracle $(ORACLE)

lint: $(READY)  ## ruff's rules and its formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

# NO_MKDOCS_2_WARNING leaves out a notice of the theme about its successor.
MKDOCS := HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.venv/docs-ready: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs-setup: .venv/docs-ready

docs: docs-setup  ## the site in site/: open site/index.html
	$(MKDOCS) build --strict

docs-serve: docs-setup  ## the site on 127.0.0.1:8000, rebuilt when a page changes
	$(MKDOCS) serve --no-strict --dev-addr 127.0.0.1:8000

build: $(READY)  ## wheel and sdist in dist/
	$(BIN)/python -m build

clean:  ## remove what the other targets made, runs/ excepted
	rm -rf .venv .venv-oracle .venv-vllm build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
