# Every target does its own set-up in $(VENV), from nothing, and nothing twice. `make help` lists them.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS     ?= 2
PYTEST_ARGS ?=
LAB_ARGS    ?=
GPU_ARGS    ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
NBVAL   := $(PYTEST) --nbval-current-env --nbval-cell-timeout 180 --nbval-sanitize-with tests/notebooks/sanitize.cfg
LAX     := 12_training.ipynb
CORE    := $(VENV)/.installed-core
PEERS   := $(VENV)/.installed-peers
KERNELS := $(VENV)/.installed-kernels
BROWSER := $(VENV)/.installed-browser
GRADING := $(VENV)/.installed-grading
RUN     := runs/text

.DEFAULT_GOAL := help
.PHONY: help lab walkthrough demo notebooks figures assignments quick test tests-alone annotations nbval peers kernels gpu \
    browser grading faults nightly grade-demo lint format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12    another interpreter (3.11 or newer) for a new $(VENV)"
	@echo "  CONSTRAINTS=         install by ranges instead of the tested releases (constraints.txt)"
	@echo "  PYTEST_ARGS='-k lsh' WORKERS=4 LAB_ARGS=--no-browser GPU_ARGS=--dry-run    passed on"

lab: $(CORE)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab $(LAB_ARGS) notebooks/00_map.ipynb

walkthrough: $(CORE)  ## run every notebook without a browser, write the pages to gallery/
	OMP_NUM_THREADS=1 $(BIN)/python -m reformer_lab walkthrough --out gallery

demo: $(CORE)  ## train a small ReformerLM on Shakespeare, then let it write
	$(BIN)/python -m reformer_lab train --task text --out $(RUN) --resume
	$(BIN)/python -m reformer_lab generate --checkpoint $(RUN)

notebooks: $(CORE)  ## run every notebook and store its outputs in it
	OMP_NUM_THREADS=1 $(BIN)/python -m reformer_lab walkthrough --store

figures: $(CORE)  ## draw the pictures, with the data they show
	$(BIN)/python -m reformer_lab figures

assignments: $(GRADING)  ## generate the students' versions of the assignments from their sources
	$(BIN)/python -m reformer_lab classroom generate

quick: $(CORE) lint  ## in a minute: style, types, direction of imports, the checks of every component
	$(PYTEST) -m quick tests/test_quick.py $(PYTEST_ARGS)

test: $(CORE) lint tests-alone annotations nbval  ## all tests and notebooks, but neither peers, kernels, browser nor whole classes

tests-alone: $(CORE)
	$(PYTEST) -m "not peers and not kernels and not browser and not grading and not nightly" $(PYTEST_ARGS)

annotations: $(CORE)  ## the checks of every component with every annotation checked, shapes included
	REFORMER_CHECK_TYPES=1 $(PYTEST) tests/test_quick.py

nbval: $(CORE)  ## the notebooks: every stored output must come out again (of the training one, the fixed cells)
	$(NBVAL) --nbval notebooks --ignore notebooks/$(LAX)
	$(NBVAL) --nbval-lax notebooks/$(LAX)

peers: $(PEERS)  ## compare with other people's implementations
	$(PYTEST) -m peers $(PYTEST_ARGS)

kernels: $(KERNELS)  ## the Triton kernels, interpreted on the CPU, and compiled for GPUs that need not be there
	TRITON_INTERPRET=1 $(PYTEST) -m kernels tests/kernels $(PYTEST_ARGS)

# The torch that $(PYTHON) has is taken if it finds a GPU, so that a bare checkout will do; else that of $(VENV).
gpu:  ## on a machine with a GPU: tests, speed, memory beside its prediction, in eight minutes
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; \
	then $(PYTHON) -m reformer_lab.benchmarks.gpu $(GPU_ARGS); \
	else $(MAKE) --no-print-directory $(KERNELS) && $(BIN)/python -m reformer_lab.benchmarks.gpu $(GPU_ARGS); fi

browser: $(BROWSER)  ## the notebooks in a real JupyterLab and Debian's Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser $(PYTEST_ARGS)

grading: $(GRADING)  ## whole classes hand in, right, wrong and cheating, and get the marks that are due
	$(PYTEST) -m "not grading" tests/classroom/test_release.py $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m grading tests/classroom $(PYTEST_ARGS)

grade-demo: $(GRADING)  ## a round of a course with made-up students: releases, grading, feedback, marks.csv
	OMP_NUM_THREADS=1 $(BIN)/python -m reformer_lab classroom demo

faults: $(CORE)  ## real training processes: killed, without disk space, in pairs of which one dies
	$(PYTEST) -m nightly tests/faults $(PYTEST_ARGS)

nightly: $(CORE)  ## what takes long: 10,000 fuzz cases, 40 killed runs, the slowest tests
	REFORMER_FUZZ=nightly $(PYTEST) tests/fuzz $(PYTEST_ARGS)
	REFORMER_FAULTS=full $(PYTEST) -rA tests/faults/test_kills.py $(PYTEST_ARGS)
	$(PYTEST) -m "nightly and not peers and not kernels and not browser and not grading" --ignore tests/faults/test_kills.py $(PYTEST_ARGS)

lint: $(CORE)  ## ruff over code and notebooks, mypy over the public interface, the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(CORE)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and build products (keeps .venv and runs/)
	rm -rf build dist gallery *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "reformer_ref needs" \
	    "Python 3.11 or newer, but $(PYTHON) is not that. Name another one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first, by its pin: left to a dependency, pip would take the newest build, which may be several GB larger.
# A CUDA build of torch brings its own triton, which must stay; without one, this is the tested release. (Linux only.)
$(CORE): $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo "Installing reformer_ref and what it needs into $(VENV); the first time takes some minutes."
	$(PIP) 'torch>=2.6'
	[ "$$(uname)" != Linux ] || $(BIN)/python -c 'import triton' 2> /dev/null || $(PIP) triton$(if $(CONSTRAINTS),==3.6.0)
	$(PIP) -e '.[test,lab]'
	@touch $@

$(PEERS): $(CORE)
	$(PIP) -e '.[test,lab,peers]'
	@touch $@

$(KERNELS): $(CORE)
	$(PIP) -e '.[test,lab,kernels]'
	@touch $@

$(GRADING): $(CORE)
	$(PIP) -e '.[test,lab,grading]'
	@touch $@

$(BROWSER): $(CORE)
	$(PIP) -e '.[test,lab,browser]'
	@touch $@
