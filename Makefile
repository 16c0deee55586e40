# pyvmm: `make demo` boots a guest, `make test` runs every test. Both set up all they need first, and neither calls
# sudo. Set PYTHON=python3.12 for another interpreter, VENV=folder for another virtual environment.

PYTHON ?= python3
VENV ?= .venv
# `make test ARGS="-k serial -x"`: passed on to pytest.
ARGS ?=

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Warnings of the C compiler are errors in our own builds, not in those of a user with another compiler.
export PYVMM_WERROR = 1
SUBMAKE := $(MAKE) --no-print-directory

# Stamps, all inside the virtual environment, so that they go when it goes. Another PYTHON makes it anew.
MADE := $(VENV)/.made-with-$(subst /,_,$(PYTHON))
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.installed-dev
NATIVE := $(VENV)/.native
NATIVE_SOURCES := setup.py $(wildcard pyvmm/_native/*.py pyvmm/_native/*.c pyvmm/_native/*.h) \
	pyvmm/kvm/constants.py pyvmm/kvm/exits.py
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])

.PHONY: help demo test-unit test soak conformance fuzz fuzz-native lint bench docs images clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo "make demo       set up, then run guests to their greetings, Linux among them (needs /dev/kvm)"
	@echo "make test       set up, then run all tests; what the machine lacks is skipped and named"
	@echo "make test-unit  the tests that need neither KVM nor any tool but Python and gcc"
	@echo "make soak       the long counts: thousands of VMs, random kills, sanitizers; KVM tests by the reference paths"
	@echo "make conformance  what the virtio standard demands, its tests, and a mutant of the device for each"
	@echo "make fuzz         random drivers against every virtio device, until interrupted"
	@echo "make fuzz-native  libFuzzer on the data paths in C, until interrupted (needs clang)"
	@echo "make lint       ruff, mypy --strict, the layers"
	@echo "make bench      measure, print a table, write JSON and a plot"
	@echo "make docs       build the site, the course in it, in build/site"
	@echo "make images     build every small guest and Linux image into the cache"
	@echo "make clean      remove what was built here (the cache of guest images stays)"

# Ends within a second where KVM cannot be used: the recipe's status is 126, which make prints (its own is 2).
demo:
	@scripts/check-kvm.sh
	@scripts/tools.sh linux
	@$(SUBMAKE) $(INSTALLED) $(NATIVE)
	@scripts/demo.sh $(VENV)/bin/pyvmm

test-unit:
	@scripts/tools.sh build
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@$(VENV)/bin/python -m pytest -n 2 -q tests/unit $(ARGS)

test:
	@scripts/tools.sh test
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@scripts/linux-image.sh $(VENV)/bin/pyvmm
	@scripts/run-tests.sh $(VENV)/bin/python $(ARGS)

soak:
	@scripts/tools.sh test
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@scripts/linux-image.sh $(VENV)/bin/pyvmm
	@$(VENV)/bin/python -m pytest --soak -v $(ARGS)
	@$(VENV)/bin/python -m pytest --plain -q -n 2 --dist loadfile -m "not serial and not unprivileged" tests/kvm

conformance:
	@scripts/tools.sh build
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@$(VENV)/bin/python -m tests.conformance.run $(ARGS)

fuzz:
	@scripts/tools.sh build
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@$(VENV)/bin/python -m tests.fuzz $(or $(ARGS),--seconds inf --seed $$(date +%s))

fuzz-native:
	@scripts/tools.sh build
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@$(VENV)/bin/python -m tests.native.fuzz $(ARGS)

lint:
	@scripts/tools.sh build
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

bench:
	@scripts/check-kvm.sh
	@scripts/tools.sh bench
	@$(SUBMAKE) $(DEVELOP) $(NATIVE)
	@$(VENV)/bin/python -c 'import matplotlib' 2>/dev/null || $(VENV)/bin/python -m pip install -q -e '.[bench]' --no-build-isolation
	@$(VENV)/bin/python -m bench $(ARGS)

docs:
	@scripts/tools.sh build
	@$(SUBMAKE) $(INSTALLED)
	@$(VENV)/bin/python -c 'import material' 2>/dev/null || $(VENV)/bin/python -m pip install -q -e '.[docs]' --no-build-isolation
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	@echo "the site is in build/site (its search needs a server: python3 -m http.server -d build/site)"

images:
	@scripts/tools.sh linux
	@$(SUBMAKE) $(INSTALLED) $(NATIVE)
	@$(VENV)/bin/pyvmm image build $(or $(ARGS),all)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f pyvmm/_native/*.so
	find pyvmm tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@echo "==> virtual environment in $(VENV), with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install -qq --upgrade pip $$($(PYTHON) -c '$(BUILD_REQUIRES)')
	@touch $@

$(INSTALLED): $(MADE) pyproject.toml
	@echo "==> building pyvmm and its C helper"
	@$(VENV)/bin/python -m pip install -qq --no-build-isolation -e .
	@touch $@

$(DEVELOP): $(MADE) pyproject.toml
	@echo "==> building pyvmm and its C helper, installing the tools of its tests"
	@$(VENV)/bin/python -m pip install -qq --no-build-isolation -e '.[dev]'
	@touch $@ $(INSTALLED)

# For a change of the C helper; after an installation, which built it, there is nothing left to compile.
$(NATIVE): $(INSTALLED) $(NATIVE_SOURCES)
	@$(VENV)/bin/python setup.py -q build_ext --inplace
	@touch $@
