# `make` lists the targets. Nothing is written but .venv, runs/ and the cache folder ($TRANSFER_CACHE, ~/.cache/transfer-operator).

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
STORAGE ?= runs/.storage
# Test processes: one more than cores, since many a test waits. Each keeps to one thread, or they would fight for the cores.
JOBS ?= 3
bin := .venv/bin
export PYTHON

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## make .venv with every dependency pinned (TORCH_INDEX=<address> for the CPU build of torch)
	@hack/setup

.PHONY: model
model: setup ## fetch and convert the model of the examples (any Linux)
	@$(bin)/python -m hack.inputs.prepare --only model --storage $(STORAGE)

.PHONY: inputs
inputs: setup ## fetch and prepare model, texts, questions and instructions of the examples (Debian)
	@$(bin)/python -m hack.inputs.prepare --storage $(STORAGE)

.PHONY: demo
demo: ## teach a small English model Indonesian and score it: set-up, inputs and the run, 10 to 18 minutes
	@hack/demo examples/indonesian.yaml

.PHONY: demo-short
demo-short: ## the same in a few steps, to see that everything works (its scores mean nothing)
	@hack/demo --short examples/indonesian.yaml

.PHONY: test
test: setup ## run all tests but those of the cluster (none needs root); EXHAUSTIVE=1 for every fault at every write of the operator
	@hack/cluster/tool helm >/dev/null && hack/cluster/tool versitygw >/dev/null  # built before a test's time runs
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 EXHAUSTIVE=$(EXHAUSTIVE) $(bin)/pytest -q -n $(JOBS) --dist loadscope --no-loadscope-reorder --ignore tests/cluster \
	  --cov=transfer_api --cov=transfer_operator.decide --cov-branch --cov-report=term:skip-covered --cov-report=json:.coverage.json --cov-fail-under=95 $(PYTEST)
	@$(bin)/python -m tests.branches .coverage.json 95

.PHONY: check
check: setup ## style, types, import rules, generated files
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/mypy hack/inputs
	$(bin)/lint-imports
	$(bin)/python -m transfer_api.generate --check
	$(bin)/mypy hack/chart
	@$(MAKE) --no-print-directory chart

.PHONY: chart
chart: setup ## check the Helm chart: lint, schemas, alerts (builds helm and kubeconform from their Go modules once)
	@$(bin)/python -m hack.chart.check

.PHONY: format
format: setup ## format the code and mend what can be mended
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

.PHONY: generate
generate: setup ## write crds/ and docs/reference.md from the models, and the chart's dashboards
	$(bin)/python -m transfer_api.generate
	$(bin)/python -m hack.chart.dashboards

.PHONY: bench
bench: inputs ## measure what benchmarks/bars.yaml sets bars for
	@missed=0; for each in one_machine trainer checkpointing evaluator_vs_harness shard_lost judge; do $(bin)/python -m benchmarks.$$each || missed=1; done; exit $$missed

.PHONY: bench-trainer
bench-trainer: inputs ## measure the trainer against transformers' and TRL's, with nothing else running; about 15 minutes
	@missed=0; for each in trainer checkpointing; do $(bin)/python -m benchmarks.$$each || missed=1; done; exit $$missed

.PHONY: bench-evaluator
bench-evaluator: inputs ## measure the evaluator beside lm-evaluation-harness's own model against benchmarks/bars.yaml, with nothing else running
	@missed=0; for each in evaluator_vs_harness shard_lost judge; do HF_HUB_OFFLINE=1 $(bin)/python -m benchmarks.$$each || missed=1; done; exit $$missed

.PHONY: cluster
cluster: ## start a Kubernetes on this machine, by kind where Docker runs, else without it (root); docs/cluster.md
	@hack/cluster/cluster up

.PHONY: images
images: ## build the three images and bring them into the cluster (TORCH=gpu|cpu, REGISTRY=, TAG=, BASE=)
	@hack/images/build

.PHONY: install
install: ## install the operator in the cluster, with the newest images, by Helm
	@hack/cluster/install

.PHONY: cluster-demo
cluster-demo: setup cluster images ## the demo on the cluster: apply it, follow it to its end, print its scores; about 15 minutes
	@STORAGE= $(bin)/python -m hack.inputs.prepare >&2
	@hack/cluster/install
	@hack/cluster/demo examples/indonesian.yaml

.PHONY: test-cluster
test-cluster: setup cluster images ## run the tests that need a cluster, one after the other (root); PYTEST="-k node" for some
	@STORAGE= $(bin)/python -m hack.inputs.prepare >&2
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(bin)/pytest -q tests/cluster -m "not slow" --durations 10 $(PYTEST)

.PHONY: bench-operator
bench-operator: setup cluster images ## measure the operator on the cluster against benchmarks/bars.yaml, with nothing else running
	@$(bin)/python -m benchmarks.operator

.PHONY: cluster-down
cluster-down: ## stop the cluster; images and storage stay, all else in it is lost
	@hack/cluster/cluster down

.PHONY: lock
lock: ## pin the newest dependencies that pyproject.toml allows
	hack/lock --upgrade

.PHONY: hooks
hooks: setup ## run `make check` before each commit, `make test` before each push
	$(bin)/pre-commit install --hook-type pre-commit --hook-type pre-push

.PHONY: clean
clean: ## remove .venv and the leavings of tools; runs/ and the cache folder stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* dist build
