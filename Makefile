# Every target first installs what is missing: the Debian packages in NEEDS, then .venv from requirements.lock (exact
# versions, verified hashes), then this project in editable mode. Stamp files in .venv record what is done, so that the
# second call starts immediately.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
# Tests without training, without thousands of images and with few other processes: what a change breaks most often.
FAST := $(addprefix tests/,config tables data/sampling data/augmentation data/store data/native report \
    training/test_schedules.py training/test_losses.py training/test_optimizers.py training/test_ema.py \
    evaluation/test_errors.py evaluation/test_protocols.py evaluation/test_ensembles.py \
    test_import_order.py test_experiments.py test_console.py)
BIN := $(VENV)/bin
# Tests run in one process per core, at most 4 (about 2 GB each). One torch thread per process: two processes that each
# start a thread for every core wait for each other most of the time.
PARALLEL := OMP_NUM_THREADS=1
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3 python,$(shell command -v $(name))))

.PHONY: help quickstart test test-fast test-long gpu-check lint format lock install clean

help: ## show this list
	@echo "tencrop: reproduce the error tables of ImageNet papers from configuration files"
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1 \2/p' $(MAKEFILE_LIST) | while read -r name text; do \
	    printf '  make %-12s%s\n' "$$name" "$$text"; \
	done

quickstart: install ## LeNet-5 on handwritten digits: prepare, train, evaluate, report (2 minutes plus installation)
	$(BIN)/python prepare.py data=digits
	$(BIN)/python train.py experiment=lenet5_digits
	$(BIN)/python evaluate.py experiment=lenet5_digits protocol=center
	$(BIN)/python evaluate.py experiment=lenet5_digits protocol=five_crop
	$(BIN)/python report.py 'runs=[runs/lenet5_digits]' output=report

test: lint $(VENV)/cluster ## ruff, mypy and all tests
	$(PARALLEL) $(BIN)/python -m pytest -q $(WORKERS)

test-fast: lint ## the tests of every day: without training, images from disk and other processes
	$(BIN)/python -m pytest -q $(FAST)

test-long: install $(VENV)/cluster ## tests that take minutes rather than seconds
	$(BIN)/python -m pytest -q -s -m long

gpu-check: install ## checks that need a GPU: marked tests, DDP, exact resume, protocols; prints a table
	$(BIN)/python bench/gpu_check.py

lint: install ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src bench tests $(wildcard *.py)

format: install ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --extra dev \
	    --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command 'make lock' --output-file requirements.lock

clean: ## remove .venv and build outputs, keep runs and prepared data
	rm -rf $(VENV) build src/*.egg-info src/tencrop/data/native/*.so

install: $(VENV)/installed ## install only

$(VENV)/installed: pyproject.toml setup.py $(wildcard src/tencrop/data/native/*.[ch]) $(VENV)/locked
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# In two passes: packages without wheels (ffcv) are built with the locked setuptools, which must be installed before.
$(VENV)/locked: requirements.lock $(BIN)/python
	@echo "Installing requirements.lock (3 GB of downloads the first time) ..."
	@sed -nE '/^(pip|setuptools)==/,/[^\\]$$/p' requirements.lock > $(VENV)/build.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/build.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation -r requirements.lock
	@touch $@

$(BIN)/python: | $(VENV)/system
	$(PYTHON) -m venv $(VENV)

# Requirements of the C and C++ builds. Each line: a Debian package, and the command that succeeds if it is installed.
define NEEDS
gcc              command -v "$${CC:-gcc}"
g++              command -v "$${CXX:-g++}"
pkg-config       command -v pkg-config
libopencv-dev    pkg-config --exists opencv4
libturbojpeg0-dev pkg-config --exists libturbojpeg
libjpeg-dev      pkg-config --exists libjpeg
$(notdir $(PYTHON))-dev  test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
$(notdir $(PYTHON))-venv $(PYTHON) -c 'import ensurepip, venv'
endef
export NEEDS

# What tests/cluster needs. Elsewhere those tests are skipped, but not where CI is set.
$(VENV)/cluster: | $(VENV)/locked
	@export PATH="$$PATH:/usr/sbin"; \
	if ! { command -v slurmctld && command -v munged; } >/dev/null && command -v apt-get >/dev/null; then \
	    sudo=; [[ $$(id -u) == 0 ]] || sudo="sudo -n"; \
	    if $$sudo true 2>/dev/null; then \
	        echo "Installing slurm-wlm munge ..."; \
	        $$sudo apt-get update -qq; \
	        $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; \
	    fi; \
	fi
	@touch $@

$(VENV)/system:
	@[[ "$$(uname -sm)" == "Linux x86_64" ]] || { echo "error: $$(uname -sm): requirements.lock is for Linux x86_64;" \
	    "elsewhere, install with: pip install -e .[dev]" >&2; exit 1; }
	@[[ -n "$(PYTHON)" ]] && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo "error: PYTHON=$(PYTHON): Python 3.11 to 3.13 is needed; apt-get install python3.11, or make PYTHON=PATH" >&2; \
	    exit 1; }
	@missing=(); while read -r package check; do \
	    eval "$$check" >/dev/null 2>&1 || missing+=("$$package"); \
	done <<< "$$NEEDS"; \
	if [[ $${#missing[@]} != 0 ]]; then \
	    sudo=; [[ $$(id -u) == 0 ]] || { [[ -t 0 ]] && sudo=sudo || sudo="sudo -n"; }; \
	    if ! command -v apt-get >/dev/null || ! $$sudo true 2>/dev/null; then \
	        echo "error: packages are missing that cannot be installed from here; run 'apt-get install $${missing[*]}'" \
	            "as root, or without root 'conda env create -f environment.yml' and 'conda activate tencrop'," \
	            "then make again" >&2; exit 1; \
	    fi; \
	    echo "Installing $${missing[*]} ..."; \
	    $$sudo apt-get update -qq; \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi; \
	mkdir -p $(VENV); touch $@
