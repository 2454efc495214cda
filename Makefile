# make demo   install, then render a clip of a synthetic scene, annotate and score it, fly through its first frame
# make test   install, then lint, types and tests
# make clean  forget the installation
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints-cpu.txt
SHELL := /bin/bash
# the rasteriser is C++, compiled on first use: where the machine has no compiler one comes with pip
COMPILER := $(shell command -v c++ g++ clang++ >/dev/null || echo '[compiler]')

.PHONY: demo test browser clean

demo: $(VENV)/installed
	$(BIN)/longtake demo --out demo-out

test: $(VENV)/installed-test browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

# Reports are looked at in a real browser; without one that test is skipped and says so.
browser:
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null \
	      || echo "no Chromium could be installed"; \
	  else echo "no Chromium, and no right to install it"; fi; fi

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longtake needs Python 3.11: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python has no venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.$(COMPILER)'
	@touch $@

clean:
	rm -rf $(VENV)
