# `make help` lists what there is. Needs Python 3.11 to 3.13 and nothing else; all else
# goes into .venv. Another Python: `make demo PYTHON=/path/to/python3.12`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
# An image may forbid bytecode; then each command would compile its libraries anew.
export PYTHONDONTWRITEBYTECODE =
# without .pyc files for the thousands of modules that are never imported
PIP := $(PY) -m pip install --no-compile --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help try demo own install test test-fast lint format docs clean-demo python

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

try: .venv/installed ## draw now: make try PROMPT="a red heart on a white background"
	@. ./launch/env.sh && $(PY) -m unclip_jax.sample --model=pretrained/icons \
	  --out=try.png --overwrite $(if $(PROMPT),--prompt='$(PROMPT)' --scale=8,\
	  --prompts_file=pretrained/prompts.txt --columns=8 --scale=3)

demo: python ## train all stages on icons, draw pictures, measure them; again: goes on
	@. ./launch/env.sh && \
	  exec $(PYTHON) launch/demo.py --install '$(MAKE_COMMAND) install PYTHON=$(PYTHON)'

own: python ## train on your images: make own DATA=data/mine NAME=mine MINUTES=60
	@test -n "$(DATA)" -a -n "$(NAME)" || { echo "error: say which data, and a name for" \
	  "what comes of it: make own DATA=data/mine NAME=mine" >&2; exit 1; }
	@. ./launch/env.sh && \
	  exec $(PYTHON) launch/own.py --install '$(MAKE_COMMAND) install PYTHON=$(PYTHON)' \
	    --data '$(DATA)' --name '$(NAME)' --minutes '$(or $(MINUTES),60)'

install: .venv/installed ## .venv with what runs

test: .venv/installed-test ## all tests
	$(PY) -m pytest -n 2 --dist worksteal

test-fast: .venv/installed-test ## the quick tests: of one process, without long compilation
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow and not multiprocess"

lint: .venv/installed-test ## style, spelling, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib
	.venv/bin/pyrefly check --summary=none

format: .venv/installed-test ## bring all files into style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: .venv/installed-docs ## the site, with the API reference, into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

clean-demo: ## remove what the demo made: runs/icons and exports/icons
	@# nothing that is mounted below them
	for folder in runs/icons exports/icons; do \
	  [ ! -e $$folder ] || find $$folder -xdev -delete; done

python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found;" \
	  "install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: PYTHON=$(PYTHON) must be Python 3.11, 3.12 or 3.13; it is" \
	  "$$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; exit 1; }

.venv/made: | python
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu:" \
	  "apt install python3-venv" >&2; exit 1; }
	@touch $@

.venv/installed: requirements.txt .venv/made
	@echo "installing requirements.txt into .venv (2.5 GB; a few minutes)"
	@$(PIP) -r requirements.txt
	@touch $@

.venv/installed-test: requirements-test.txt requirements-programs.txt .venv/installed
	@echo "installing requirements-test.txt and -programs.txt into .venv"
	@$(PIP) -r requirements-test.txt
	@rm -rf .venv/programs
	@$(PIP) -q --no-deps --target .venv/programs -r requirements-programs.txt
	@touch $@

.venv/installed-docs: requirements-docs.txt .venv/made
	@echo "installing requirements-docs.txt into .venv"
	@$(PIP) -r requirements-docs.txt
	@touch $@
