# Each target sets up what it needs on a fresh machine: its own .venv, at the tested versions. `make` lists them.
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
CODE := src recipes tests benchmarks
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

# What `make test` asks before the tests.
CHECKS := lint types

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format types reproduce results tables figures clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

# torch first: resolving it with the rest may choose another build.
.venv/ready: setup.cfg constraints.txt
	test -d $(BIN) || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: .venv/ready ## train a small encoder on a real data set on the CPU and ask it three questions
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/one_process.yaml \
		recipes/quickstart.py --config recipes/configs/lf-gutenberg-science-tiny/quickstart.yaml

test: .venv/ready $(CHECKS) ## check the code, then run every test: no network, no GPU; ONLY=tests/losses runs a part
	$(BIN)/python -m pytest $(ONLY)

lint: .venv/ready ## check style and layout
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: .venv/ready ## lay the code out anew, and mend what can be mended without a thought
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

types: .venv/ready ## check the package's types
	$(BIN)/mypy

reproduce: .venv/ready ## run the CPU rows of recipes/results.yaml again; ROW=name for one, DATA=folder for sets that do not ship
	$(BIN)/python recipes/tools/reproduce.py $(ROW) $(if $(DATA),--data $(DATA))

results: .venv/ready ## record ROW=name from the run in RUN=folder, or by running the row's own command again
	$(BIN)/python recipes/tools/reproduce.py --record $(ROW) $(if $(RUN),--run $(RUN)) $(if $(DATA),--data $(DATA))

tables: .venv/ready ## render the tables of the READMEs; CHECK=1 only says what is old
	$(BIN)/python recipes/tools/tables.py $(if $(CHECK),--check)
	$(BIN)/python -m benchmarks.render $(if $(CHECK),--check)

figures: .venv/ready ## draw the pictures of recipes/README.md
	$(BIN)/python recipes/tools/figures.py

clean: ## remove the environment, builds and runs
	rm -rf .venv build dist outputs
