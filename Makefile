# Everything a person calls. Caches lie outside the clone, so that a second clone builds quickly.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/graftwork
export CARGO_TARGET_DIR ?= $(CACHE)/target
# local: a one-node Kubernetes on this machine. current: the current kubeconfig context.
CLUSTER ?= local
# With CLUSTER=current, how images get there: kind, push (with REGISTRY=...) or loaded (they are there already).
IMAGES ?=
REGISTRY ?=
# Options of a benchmark: `make bench-train BENCH=--quick`.
BENCH ?=
# A fuzz target, and how long it runs.
FUZZ ?= request
FUZZ_SECONDS ?= 60
# Names of stories, or parts of them: `make e2e STORIES="canary rollback"`.
STORIES ?=
export CLUSTER IMAGES REGISTRY STORIES

.PHONY: help own-target setup build release demo demo-down test unit unit-checked soak fuzz e2e lint fmt deny generate base-model parity parity-fixtures lm-eval lm-eval-python privacy-figures build-memory \
	bench-train bench-train-gpu bench-serve bench-serve-gpu bench-router bench-data qlora-figures check-cuda test-cuda image-trainer-cuda image-inference-cuda

help: ## This list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

own-target:
	@.ci/own-target

setup: ## Installs what this machine lacks (Debian packages) and builds the tests' S3 server; the others do it by themselves
	@e2e/run setup

build: own-target ## Builds all binaries as tests and the demo have them
	cargo build --workspace --bins

release: own-target ## Builds all binaries optimised, for images of your own (many minutes once)
	cargo build --locked --release --workspace --bins

demo: own-target ## Brings the whole loop up, walks through it and leaves it running
	@e2e/run demo

demo-down: ## Removes the demo and its cluster; nothing is left behind
	@e2e/run demo-down

test: own-target ## Every test but soak and parity, with the stories on a real cluster
	@e2e/run test

unit: own-target ## The tests that need no cluster and no root
	@e2e/run unit

MODEL_CHECKS := profile.dev.package.graftwork-model
unit-checked: own-target ## crates/model's tests with debug assertions and overflow checks, which its binaries leave out
	cargo test --locked --package graftwork-model --config '$(MODEL_CHECKS).debug-assertions=true' \
	    --config '$(MODEL_CHECKS).overflow-checks=true'

soak: own-target ## The long forms of tests: 20,000 mixed answers, twice, 20 killed engines, 1,000,000 routed requests (minutes)
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --test suite -- --ignored

fuzz: ## Looks for input that a parser can't stand (FUZZ=adapter|request|template FUZZ_SECONDS=60); fuzz/README.md
	cp Cargo.lock fuzz/
	mkdir -p fuzz/corpus/$(FUZZ)
	CARGO_TARGET_DIR=$(CACHE)/fuzz cargo +nightly fuzz run $(FUZZ) fuzz/corpus/$(FUZZ) fuzz/seeds/$(FUZZ) -- -max_total_time=$(FUZZ_SECONDS)

e2e: own-target ## The stories alone
	@e2e/run e2e

lint: own-target ## Formatting, clippy (warnings are errors), and the crates that do no I/O each alone
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	.ci/alone

fmt: ## Formats
	cargo fmt --all

deny: ## Licences, sources, advisories and duplicates of dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check

generate: own-target ## Writes what is generated: crds, examples, docs/conditions.md, the chart's copies
	@e2e/run generate

privacy-figures: own-target ## Recall and precision of the detectors of personal data, on what PyPI's Faker makes
	@crates/privacy/figures

build-memory: own-target ## Peak memory of dataset builds against their sources' size (SIZES="0.5 1 2 5" GB, NEAR=Keep|Group|Drop)
	cargo build --locked --release --package dataset-builder --package engine --package router --package trainer --bins
	@python3 trainer-image/dataset-builder/memory.py "$(CARGO_TARGET_DIR)/$$(rustc -vV | sed -n 's/^host: //p')/release/dataset-builder"

base-model: own-target ## Pre-trains the demo's base model (ten minutes to half an hour)
	@e2e/demo-data/build-base-model

LM_EVAL_PYTHON := $(CACHE)/lm-eval
URL ?= http://localhost:8080
MODEL ?= topics
TOKENIZER ?= e2e/demo-data/base-model
ROWS ?=
# How many of them (empty: all), and what the run's status says of their exact_match, or of the benchmark.
LIMIT ?= 100
EXACT_MATCH ?=
SCORE ?= $(EXACT_MATCH)
lm-eval-python: ## Fetches lm_eval, outside the clone (900 MB): make demo and make test then score with it, too
	@[ -e $(LM_EVAL_PYTHON)/complete ] || { \
	    rm -rf $(LM_EVAL_PYTHON) && python3 -m venv $(LM_EVAL_PYTHON) && \
	    $(LM_EVAL_PYTHON)/bin/pip install -q 'lm_eval[api]>=0.4.13,<0.5' 'transformers<6' && \
	    touch $(LM_EVAL_PYTHON)/complete; }

lm-eval: ## Scores ROWS (JSONL of prompt, completion, or a benchmark's) with lm_eval over an endpoint, and by our own rules
	@[ -n "$(ROWS)" ] || { echo "error: name the rows: ROWS=test.jsonl" >&2; exit 1; }
	@$(MAKE) --no-print-directory lm-eval-python
	HF_HUB_OFFLINE=1 $(LM_EVAL_PYTHON)/bin/python e2e/clients/lm_eval_score.py $(URL) $(MODEL) $(TOKENIZER) $(ROWS) "$(LIMIT)" "$(SCORE)"

parity: own-target ## Compares ours with torch, transformers, peft and TRL, both ways (several GB of packages, some minutes)
	@parity/run

parity-fixtures: own-target ## Records anew what the parity tests compare with
	@parity/run record

bench-train: own-target ## The trainer beside transformers and peft: speed, memory, start (about an hour)
	@bench/run train $(BENCH)

bench-train-gpu: own-target ## The trainer beside transformers and peft on an NVIDIA GPU, at Llama-3.1-8B's shape (an hour; says where none is)
	@bench/run train-gpu $(BENCH)

bench-serve: own-target ## The engine beside llama.cpp and peft: throughput with many adapters (about an hour)
	@bench/run serve $(BENCH)

bench-serve-gpu: own-target ## The engine beside transformers and peft on an NVIDIA GPU: 1, 8 and 64 adapters at Llama-3.1-8B's shape (an hour; says where none is)
	@bench/run serve-gpu $(BENCH)

bench-router: own-target ## The router beside nginx, haproxy and sglang-router (a quarter of an hour)
	@bench/run router $(BENCH)

bench-data: own-target ## Rows to token blocks, beside pyarrow and tokenizers (a quarter of an hour)
	@bench/run data $(BENCH)

qlora-figures: own-target ## Test losses of the demo's fine-tune beside a base in Q8_0 and Q4_K, against bf16 (a quarter of an hour)
	@bench/run qlora $(BENCH)

# The GPU's architecture: 80 (A100), 86 (A10), 89 (L4, L40S), 90 (H100), 100 (B200), 120.
CUDA_COMPUTE_CAP ?= 80
export CUDA_COMPUTE_CAP

check-cuda: own-target ## Type-checks what is built for NVIDIA GPUs, without one (CUDA_COMPUTE_CAP=80; a quarter of an hour once)
	@crates/model/cuda.sh check

test-cuda: own-target ## The tests of GPUs' operations and of the engine's API on the GPU of this machine, in bf16 (says where none is)
	@crates/model/cuda.sh test

image-trainer-cuda: own-target ## The trainer's image for NVIDIA GPUs of one architecture (CUDA_COMPUTE_CAP=80)
	@crates/model/cuda.sh image trainer

image-inference-cuda: own-target ## The engine's and router's image for NVIDIA GPUs of one architecture (CUDA_COMPUTE_CAP=80)
	@crates/model/cuda.sh image inference
