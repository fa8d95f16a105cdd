# The commands a developer needs. `make` alone lists them; none needs anything activated first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# VIDGEN_PYTHON names an environment to use in place of .venv (see tools/bootstrap.sh).
PY := $(or $(VIDGEN_PYTHON),.venv/bin/python)
# More arguments for a target's command: make quickstart ARGS="seed=1", make test ARGS="-k flow".
ARGS ?=

.PHONY: help quickstart test test-fast test-long soak lint format wheel gpu-check clean

help: ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

quickstart: ## set up, train a small model, sample from it, write runs/quickstart/report.html
	@tools/bootstrap.sh run
	@$(PY) -m vidgen quickstart $(ARGS)

PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: ## set up, run the tests this machine can run, but for the long ones
	@tools/bootstrap.sh dev
	@$(PYTEST) -m "not long" $(ARGS)

test-fast: ## the tests to run on each change: none that takes more than a few seconds
	@tools/bootstrap.sh dev
	@$(PYTEST) -m "not slow and not long" $(ARGS)

test-long: ## the long tests: every CPU variant under the sanitizers
	@tools/bootstrap.sh dev
	@$(PYTEST) -m long $(ARGS)

soak: ## repeat the tests of races and crashes with new seeds; SOAK_SECONDS=3600
	@tools/bootstrap.sh dev
	@PY="$(PY)" tools/soak.sh $(ARGS)

lint: ## ruff, mypy, clang-format: check, change nothing
	@tools/bootstrap.sh dev
	@PY="$(PY)" tools/lint.sh check

format: ## let ruff and clang-format rewrite what they can
	@tools/bootstrap.sh dev
	@PY="$(PY)" tools/lint.sh fix

wheel: ## build dist/*.whl for this Python and any supported torch; VIDGEN_CUDA_ARCHS="80;90a" adds CUDA
	@tools/bootstrap.sh dev
	@PY="$(PY)" tools/wheel.sh

gpu-check: ## on a GPU machine: CUDA build, GPU tests, benchmarks; ONLY=mfu,ops RESUME=1; DRY=1 on a CPU
	@tools/gpu_check.sh $(if $(DRY),--dry) $(if $(RESUME),--resume) $(if $(ONLY),--only "$(ONLY)")

clean: ## remove what was built and installed; runs/ stays
	rm -rf .venv build dist *.egg-info vidgen/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
