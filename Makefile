# make install | demo | test | test-all | lint | lock | tools
PYTHON ?= python3.11
ifeq ($(shell command -v $(PYTHON)),)
PYTHON := python3
endif

# Real images, where there are any: data/ in this checkout or shared/data beside it (see the README).
ifndef MELANOMA_DATA
MELANOMA_DATA := $(firstword $(wildcard $(CURDIR)/data $(CURDIR)/../shared/data))
endif
export MELANOMA_DATA

VENV := .venv/.installed

.PHONY: install demo test test-all lint lock tools

install: $(VENV)

$(VENV): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "melanoma needs Python 3.11: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: install
	.venv/bin/melanoma demo --out demo

test: install lint
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: test
	.venv/bin/python -m pytest -m slow

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy

# Needs a package registry; the lock names no host, so that any registry serves it.
lock: install
	.venv/bin/uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate --python-version 3.11 --quiet --upgrade -o requirements.lock

# promtool, for the tests of the alert rules, where Debian's packages are at hand; nothing is installed.
tools: .tools/promtool

.tools/promtool:
	mkdir -p .tools
	cd .tools && apt-get download prometheus && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool
	rm .tools/prometheus_*.deb
