# make quickstart   train, evaluate and draw on the handwritten digits (a few minutes, no download of data)
# make test         the whole test suite
# make test-quick   without the files that tests/slow.txt names, for daily work
# make conformance  every attack against the reference results in $SI_JAX_SHARED (default ../shared; an hour or so)
# make selfcheck    every attack against classifiers whose robust accuracy is known exactly (an hour or so)
# make study        the study of docs/study.md on CIFAR-10; goes on where it was stopped
# make accelerator  what one GPU or TPU does, in two commands of five minutes; goes on where it was stopped
# make check-wheel  sdist and wheel, installed into an empty environment and used from another folder (minutes; a network)
# make docs         the pages of docs/ as a site, in build/docs
# make chaos        100 kills of training and evaluation at random points, and thousands of malformed inputs
# make lint         formatting, lint and types
# make format       put the formatting right
#
# Each makes the virtual environment it needs. Another interpreter or place: make test PYTHON=python3.12 VENV=env
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
MALFORMED ?= 5000

RUN := $(VENV)/bin/python
# The project itself, so that `import si_jax` and the command si-jax work from any folder; it stays where it lies.
PROJECT := $(RUN) -m pip install --no-deps --editable .
USER_STAMP := $(VENV)/.requirements-installed
DEV_STAMP := $(VENV)/.requirements-dev-installed
WANTED := import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
  "si_jax needs Python 3.11 to 3.13, this is %d.%d: name another one, as in make PYTHON=python3.12" % v)

.PHONY: quickstart test test-quick conformance selfcheck study accelerator chaos check-wheel docs lint format clean

quickstart: $(USER_STAMP)
	$(RUN) -m examples.quickstart

PYTEST := $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(DEV_STAMP)
	$(PYTEST) --durations 10 $(PYTEST_ARGS)

test-quick: $(DEV_STAMP)
	$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

conformance: $(USER_STAMP)
	$(RUN) -m benchmarks.conformance

# Its programs run for milliseconds, so most of its time is compiling them: unoptimised code is there sooner.
selfcheck: export XLA_FLAGS = --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
selfcheck: $(USER_STAMP)
	$(RUN) -m benchmarks.selfcheck --page=docs/trust.md

# Every run and every evaluation of it is a target with a stamp: what is there is not made again, and one that was
# stopped goes on. `make -k study` goes on with the others if one fails; `make runs/study/tradessi-1.done` is one.
DATA_DIR ?= ../shared/data
RUNS := $(foreach seed,0 1 2,$(foreach arm,trades tradessi tradesreg nfgsm nfgsmsi,$(arm)-$(seed))) \
  $(foreach seed,3 4,$(foreach arm,trades tradessi tradesreg,$(arm)-$(seed)))
STUDY := $(RUNS:%=runs/study/%.done)

EVIDENCE = $(RUN) report.py --table=evidence --runs=runs/study --checkpoint=last --data_dir=$(DATA_DIR)

study: $(STUDY)
	$(EVIDENCE) --seeds=0,1,2,3,4

# The commands of one arm and seed that are not done yet, as report.py lists them.
$(STUDY): runs/study/%.done: | $(USER_STAMP)
	mkdir -p runs/study
	$(EVIDENCE) --seeds=$(lastword $(subst -, ,$*)) --commands=missing > runs/study/$*.sh
	grep -e '/evidence-$(firstword $(subst -, ,$*))/' runs/study/$*.sh | PATH="$(abspath $(VENV))/bin:$$PATH" sh -e
	rm runs/study/$*.sh
	touch $@

# JAX for the accelerator must be installed: `make accelerator VENV=env` takes an environment that has it.
# PyTorch is measured beside ours if it is there, the public AutoAttack with ACCELERATOR_ARGS=--reference=FOLDER.
ACCELERATOR_ARGS ?=

accelerator: $(USER_STAMP)
	$(RUN) -m benchmarks.accelerator speed
	$(RUN) -m benchmarks.accelerator training --data_dir=$(DATA_DIR) $(ACCELERATOR_ARGS)

docs: $(DEV_STAMP)
	$(RUN) -m sphinx -q -E -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

chaos: $(DEV_STAMP)
	$(RUN) -m tests.chaos --side_by_side=$(WORKERS)
	SI_JAX_MALFORMED=$(MALFORMED) $(RUN) -m pytest tests/hostile

check-wheel: | $(RUN)
	$(RUN) -m tests.wheel

lint: $(DEV_STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(DEV_STAMP)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf build dist .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps are written last: an interrupted installation is taken up again, and a changed requirements file is
# installed again. A newer pip is quicker; where there is none, the old one will do.
$(RUN):
	$(PYTHON) -c '$(WANTED)'
	$(PYTHON) -m venv $(VENV)
	-$(RUN) -m pip install --upgrade pip

# Of a virtual environment whose making was interrupted, the interpreter may be there without pip.
PIP_THERE = $(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)

$(USER_STAMP): requirements.txt pyproject.toml | $(RUN)
	@$(PIP_THERE)
	$(RUN) -m pip install -r requirements.txt
	$(PROJECT)
	touch $@

$(DEV_STAMP): requirements.txt requirements-dev.txt pyproject.toml | $(RUN)
	@$(PIP_THERE)
	$(RUN) -m pip install -r requirements-dev.txt
	$(PROJECT)
	touch $(USER_STAMP) $@
