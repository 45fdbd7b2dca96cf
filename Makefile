# Each target sets up what it needs on a fresh machine: its own .venv, at the tested versions.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: quickstart test reproduce results tables figures clean

# torch first: resolving it with the rest may choose another build.
.venv/ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: .venv/ready
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/one_process.yaml \
		recipes/quickstart.py --config recipes/configs/lf-gutenberg-science-tiny/quickstart.yaml

test: .venv/ready
	$(BIN)/ruff check src recipes tests benchmarks
	$(BIN)/python -m pytest

# Rows of recipes/results.yaml run again: every CPU row, or ROW=name; DATA=folder holds data sets that do not ship.
reproduce: .venv/ready
	$(BIN)/python recipes/tools/reproduce.py $(ROW) $(if $(DATA),--data $(DATA))

# ROW=name is written from the run in RUN=folder, or by running the row's own command again.
results: .venv/ready
	$(BIN)/python recipes/tools/reproduce.py --record $(ROW) $(if $(RUN),--run $(RUN)) $(if $(DATA),--data $(DATA))

tables: .venv/ready
	$(BIN)/python recipes/tools/tables.py

figures: .venv/ready
	$(BIN)/python recipes/tools/figures.py

clean:
	rm -rf .venv build dist outputs
