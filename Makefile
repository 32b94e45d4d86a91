# make demo | test | test-slow | check | bench | bench-memory | bench-compress | bench-signals | docs | wheels | native | models | clean
# Everything runs from .venv, which is made on first use and again only when pyproject.toml or constraints.txt change.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.up-to-date
TOUR := $(VENV)/.tour-up-to-date
NATIVE := build/native
CROSS_PACKAGES := gcc-aarch64-linux-gnu g++-aarch64-linux-gnu gcc-riscv64-linux-gnu g++-riscv64-linux-gnu qemu-user
DEBIAN_PACKAGES := $(CROSS_PACKAGES) mosquitto
SETS ?=
# The tests run in two processes, a file of tests in one of them, in the order of collection: what compiles for other
# processors comes first (tests/conftest.py). PyTorch has a thread in each.
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
# Where writing bytecode is switched off, each of the many processes that tests start would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench bench-memory bench-compress bench-signals docs docs-generate wheels native models debian clean venv

help:
	@sed -n 1p Makefile | cut -c3-

venv: $(STAMP)

# All extras at once, so that it shows when they do not resolve together. The tree itself is put on the path by one
# line, not installed: edits to Python files count at once, and `make native` puts the kernels beside them.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV)"
	@$(PY) tools/requirements.py > $(VENV)/requirements.txt
	@echo "  (some minutes the first time: PyTorch and the tools)"
	@set -o pipefail; $(PIP) install --constraint constraints.txt --requirement $(VENV)/requirements.txt | $(fetched)
	$(put_tree_on_path)
	@touch $@

# Of pip's words, a line for each package that it fetches, as it does.
fetched = sed -unE 's/^ *(Downloading|Using cached) ([^- ]*-[^- ]*)-[^ ]* \((.*)\)/  \2, \3/p'

define put_tree_on_path
@pwd > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/genmote-tree.pth"
@printf '#!%s\nimport sys\nfrom genmote.cli import main\nsys.exit(main())\n' "$$(pwd)/$(PY)" > $(VENV)/bin/genmote
@chmod +x $(VENV)/bin/genmote
endef

# What the tour needs and no more: the device's packages, build tools and the peer, a tenth of what the tests need.
$(TOUR): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV)"
	@$(PY) tools/requirements.py build bench > $(VENV)/tour-requirements.txt
	@set -o pipefail; $(PIP) install --constraint constraints.txt --requirement $(VENV)/tour-requirements.txt \
		| $(fetched)
	$(put_tree_on_path)
	@touch $@

# The kernels, built in place. Without a compiler everything still works on the numpy op set, slowly; with one, a build
# that fails is an error, except before the tour.
native: $(STAMP)
	@$(PY) tools/build_native.py $(NATIVE)

models: $(STAMP)
	@$(VENV)/bin/genmote pull smollm2-135m gemma3-270m || echo "models: not here; tests that need them are skipped"

# Debian packages of the tests on emulated ARM and RISC-V, and a broker; where they cannot be installed, those tests are
# skipped and say so.
debian:
	@if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && ! dpkg -s $(DEBIAN_PACKAGES) > /dev/null 2>&1; then \
		echo "installing $(DEBIAN_PACKAGES)"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES); } > build/debian.log 2>&1 \
			|| echo "debian: could not install them (build/debian.log); tests that need them are skipped"; \
	fi

build:
	@mkdir -p build

debian: | build

demo: $(if $(wildcard $(STAMP)),$(STAMP),$(TOUR))
	@$(PY) tools/build_native.py $(NATIVE) || echo "   The tour goes on without the kernels, slowly."
	@$(VENV)/bin/genmote demo
	@echo "   Next: $(VENV)/bin/genmote chat smollm2-135m"

test: native models debian
	@$(TESTS) $(SETS)

test-slow: native models debian
	@$(PY) -m pytest -q --slow -m slow $(SETS)

check: $(STAMP)
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run: $(VENV)/bin/ruff format ."; exit 1; }
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy
	@$(PY) -m pytest -q tests/test_floors.py tests/test_docs.py
	@$(VENV)/bin/mkdocs build --quiet --strict --site-dir build/site

bench: native models
	@$(PY) -m benchmarks $(SETS)

# Needs the right to make control groups (root, mostly), and 16 GB of disk for the large files.
bench-memory: native models
	@$(PY) -m benchmarks --set memory $(SETS)

# Some hours the first time; what takes long is kept under build/bench-compress.
bench-compress: native models
	@$(PY) -m benchmarks --set compress $(SETS)

# An hour or two the first time: models are trained, and kept under build/bench-signals. The data sets lie beside the
# project, or in the folder that GENMOTE_BENCH_SIGNALS names.
bench-signals: native
	@$(PY) -m benchmarks --set signals

docs: $(STAMP)
	@$(PY) -m genmote.cli._reference docs/cli.md
	@$(PY) -m genmote.cli._devices_page docs/devices.md
	@$(VENV)/bin/mkdocs build --quiet --strict --site-dir build/site
	@echo "docs: build/site/index.html"

wheels: $(STAMP) debian
	@$(PY) tools/wheels.py dist

clean:
	rm -rf build dist site genmote/ops/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
