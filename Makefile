# Needs make and Python 3.11 or 3.12; everything else goes into .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

BIN := .venv/bin

# The stamp's name holds the pins and the place, because an environment cannot be moved. It is written last, so that
# an environment whose installation was cut short is built again.
STAMP := .venv/.complete-$(shell (cat requirements.txt requirements-dev.txt; pwd) | cksum | tr ' ' -)

# Compiling all 16,000 files beforehand costs a minute; imports compile what they need, and have to keep it whatever the
# shell says: the tests start hundreds of Pythons, and PyTorch alone takes four seconds more without its bytecode.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# The first Python that is new enough and can make environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)

##@ Use
.PHONY: phase1
phase1: $(STAMP) ## climb 10, 20, 50, 100 samples and print the verdicts (SET="lr=1e-4 ..." COMPUTE=ml.m5.xlarge)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mlflow run . -e phase1 --env-manager local \
		--experiment-name roofscale-phase1 -P set="$(SET)" -P compute="$(COMPUTE)"

.PHONY: climb
climb: $(STAMP) ## climb all phases in order, up to the gate before the GPU
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mlflow run . -e main --env-manager local -P set="$(SET)" -P compute="$(COMPUTE)"

.PHONY: ui
ui: $(STAMP) ## open the results in MLflow at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

##@ Develop
PYTEST_SIDE_BY_SIDE := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(STAMP) ## run the quick tests: every kind of behaviour once
	$(PYTEST_SIDE_BY_SIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

.PHONY: test-all
test-all: $(STAMP) ## run all tests, as CI does
	$(PYTEST_SIDE_BY_SIDE) -m "not alone"
	$(BIN)/python -m pytest -m alone

.PHONY: test-sagemaker
test-sagemaker: $(STAMP) ## run training jobs for real, on a simulator of SageMaker (root; skips where there is none)
	ROOFSCALE_TEST_SAGEMAKER=simulator $(BIN)/python -m pytest -v -rs tests/sagemaker

.PHONY: test-sagemaker-real
test-sagemaker-real: $(STAMP) ## the same in your own AWS account, for money: says how much, and runs once you agree
	ROOFSCALE_TEST_SAGEMAKER=real $(BIN)/python -m pytest -v -rs tests/sagemaker

.PHONY: check
check: $(STAMP) ## lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(STAMP) ## measure speed against its targets; writes benchmarks/results/
	$(PIP_INSTALL) --no-deps --upgrade --target .bench -r requirements-bench.txt
	PYTHONPATH=.bench $(BIN)/python -m benchmarks.run

.PHONY: gpu-check
gpu-check: $(STAMP) ## the checks that only a GPU can make, in 8 minutes; without one, their stand-in on the CPU
	PYTHONPATH=.bench $(BIN)/python -m benchmarks.gpu_check benchmarks/results/gpu_check.json

.PHONY: clean
clean: ## remove .venv and caches; data, runs and results stay
	rm -rf .venv .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {print "\n" substr($$0, 5) ":"} /^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 with venv and pip found: install one (Debian: apt install" \
		"python3.11-venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@echo "Installing requirements-dev.txt into .venv; this takes some minutes, once."
	$(PIP_INSTALL) -r requirements-dev.txt
	$(PIP_INSTALL) --no-deps --editable .
	touch $@
