# Needs Python 3.11 or newer, pip, make and git; everything else is installed into .venv.
#   make demo    set up, then classify support messages with a local model: offline, no key, no account
#   make test    set up, then lint, type-check and run every test

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test setup clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/canwait local install
	@$(BIN)/canwait demo --local

test: setup
	@scripts/check
	@scripts/test -n 2

setup: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps: installing again is due only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@touch $@ $(VENV)/.installed

# pip comes from the registry, because Debian's Python has a venv module that cannot install it.
$(BIN)/pip:
	$(if $(PYTHON),,$(error canwait needs Python 3.11 or newer: install it, or say which with PYTHON=/path/to/python))
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --quiet --python $(BIN)/python install pip
