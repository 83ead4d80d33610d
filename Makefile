# `make train` and `make test` need only Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV ?= .venv
# The newest Python installed, for the newest JAX; empty when there is none.
PYTHON_LATEST ?= $(shell .ci/find-python 3.13 3.12)
VENV_LATEST ?= .venv-latest

CONFIG ?= experiments/quickstart.py
WORKDIR ?= runs/quickstart

TESTS ?= tests
JOBS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
# XLA's compilation of the same few tiny models takes most of the tests' time; this cache shares it between all of them.
CACHED = JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3 JAX_COMPILATION_CACHE_DIR=$(abspath $(1))/jax-cache
PYTEST = -m pytest $(TESTS) -n $(JOBS) --dist worksteal --timeout 600 --durations 10 $(PYTEST_ARGS)

.PHONY: train test test-all test-latest lint format docs bench-quick parity clean

train: data/scenes.model
	$(VENV)/bin/clipjax train --config=$(CONFIG) --workdir=$(WORKDIR)

# Leaves the slow tests, those of more than about ten seconds, to test-all.
test: lint
	$(call CACHED,$(VENV)) $(VENV)/bin/python $(PYTEST) -m "not slow"

test-all: lint
	$(call CACHED,$(VENV)) $(VENV)/bin/python $(PYTEST)

test-latest: $(VENV_LATEST)/.installed-test
	$(VENV_LATEST)/bin/python -c "import jax, sys; print('JAX', jax.__version__, 'Python', sys.version.split()[0])"
	$(call CACHED,$(VENV_LATEST)) $(VENV_LATEST)/bin/python $(PYTEST) -m "not slow"

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Rewrites the pages that are generated: the API from the docstrings, the benchmark tables from their JSON.
docs: $(VENV)/.installed-test
	$(VENV)/bin/python -m docs.generate
	$(VENV)/bin/python -m benchmarks.tables

# Compares the ratios that matter with this processor's baseline; BENCH_ARGS=--write makes one. docs/bench_quick.md
bench-quick: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.quick $(BENCH_ARGS)

# Installs the PyTorch implementations to compare with, and WebDataset's reader. --no-deps: only model code is needed.
parity: $(VENV)/.installed-test
	$(VENV)/bin/python -m pip install -qq torch==2.13.0 transformers ftfy regex tqdm webdataset
	$(VENV)/bin/python -m pip install -qq --no-deps torchvision==0.28.0 timm open_clip_torch consisid-eva-clip einops

clean:
	rm -rf .venv .venv-latest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The default data, drawn once; it is the same on every machine.
data/scenes/manifest.json: | $(VENV)/.installed
	$(VENV)/bin/python -m data_pipelines.scenes --out=data/scenes

data/scenes.model: data/scenes/manifest.json
	$(VENV)/bin/python -m data_pipelines.train_tokenizer --records=data/scenes --vocab_size=256 --model_type=bpe --out=$@

$(VENV)/.installed: pyproject.toml setup.py
	$(call install,$(PYTHON),$(VENV),.)
	touch $@

$(VENV)/.installed-test: pyproject.toml setup.py
	$(call install,$(PYTHON),$(VENV),.[test$(COMMA)dev])
	touch $@ $(VENV)/.installed

$(VENV_LATEST)/.installed-test: pyproject.toml setup.py
	@test -n "$(PYTHON_LATEST)" || { echo "No Python 3.12 or newer found; name one with PYTHON_LATEST=..." >&2; exit 1; }
	$(call install,$(PYTHON_LATEST),$(VENV_LATEST),.[test])
	touch $@

COMMA = ,
define install
@$(1) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("clipjax needs Python 3.11 or newer, this is " \
  + sys.version.split()[0] + "; name another with PYTHON=python3.12")'
@echo "Installing clipjax and what it needs into $(2): about a minute"
@$(1) -m venv $(2)
@$(2)/bin/python -m pip install -qq --upgrade pip
@$(2)/bin/python -m pip install -qq --editable '$(3)'
endef
