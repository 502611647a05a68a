# Every target does its own set-up in $(VENV), from nothing, and nothing twice. `make help` lists them.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS     ?= 2
PYTEST_ARGS ?=
LAB_ARGS    ?=

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
CORE    := $(VENV)/.installed-core
PEERS   := $(VENV)/.installed-peers
RUN     := runs/text

.DEFAULT_GOAL := help
.PHONY: help lab walkthrough figures test peers lint format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12    another interpreter (3.11 or newer) for a new $(VENV)"
	@echo "  CONSTRAINTS=         install by ranges instead of the tested releases (constraints.txt)"
	@echo "  PYTEST_ARGS='-k lsh' WORKERS=4 LAB_ARGS=--no-browser    passed on"

lab: $(CORE)  ## JupyterLab on the notebooks
	@mkdir -p notebooks
	$(BIN)/jupyter lab $(LAB_ARGS) $(firstword $(wildcard notebooks/00_*.ipynb) notebooks)

walkthrough: $(CORE)  ## train a small ReformerLM on Shakespeare, then let it write
	$(BIN)/python -m reformer_ref train --task text --out $(RUN)
	$(BIN)/python -m reformer_ref generate --checkpoint $(RUN)

figures: $(CORE)  ## draw the pictures
	$(BIN)/python -m reformer_ref figures

test: $(CORE)  ## all tests but the comparison with peers
	$(PYTEST) -m "not peers" $(PYTEST_ARGS)

peers: $(PEERS)  ## compare with other people's implementations
	$(PYTEST) -m peers $(PYTEST_ARGS)

lint: $(CORE)  ## ruff over code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(CORE)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and build products (keeps .venv and runs/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "reformer_ref needs" \
	    "Python 3.11 or newer, but $(PYTHON) is not that. Name another one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first, by its pin: left to a dependency, pip would take the newest build, which may be several GB larger.
$(CORE): $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo "Installing reformer_ref and what it needs into $(VENV); the first time takes some minutes."
	$(PIP) 'torch>=2.6'
	$(PIP) -e '.[test,train]'
	@touch $@

$(PEERS): $(CORE)
	$(PIP) -e '.[test,train,peers]'
	@touch $@
