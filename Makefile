# Every target makes .venv in the checkout the first time, installs into it what it needs, and reuses it afterwards.
# Another interpreter: `rm -rf .venv`, then `make PYTHON=python3.12 test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
# A worker that has finished takes over half of what another has left.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
CORE := model parity tokenizer loss options loader checkpoint card* validate
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo index index-femto test test-core test-slow test-versions quality bench constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: .venv/.curation  ## corpus, curation, tokenizer, shards, pretraining, continuation of the shipped model (10 minutes)
	.venv/bin/python -m training.demo

index: .venv/.training  ## after make demo: what its models were trained on, for pleias app --index
	.venv/bin/python -m training.trace --index data/demo/index --shards data/demo/shards --tokenizer data/demo/tokenizer
	.venv/bin/python -m training.trace --index data/continued/index --shards data/continued/shards \
		--tokenizer modeling_pleias/tokenizer

index-femto: .venv/.training  ## the same for the base text of femto, whose corpus is not in the clone: CORPUS=FOLDER
	@[ -n "$(CORPUS)" ] || { echo "error: pass the corpus of femto: make index-femto CORPUS=FOLDER"; exit 2; }
	.venv/bin/python -m training.mixture --config model_card/femto/runs/1/mixture.yaml --corpus $(CORPUS) --out data/femto/mixture
	.venv/bin/python -m training.shards --corpus data/femto/mixture/base --validation_corpus data/femto/mixture/held_out \
		--tokenizer modeling_pleias/tokenizer --out data/femto/base
	.venv/bin/python -m training.trace --index data/femto/index --shards data/femto/base --tokenizer modeling_pleias/tokenizer

test: .venv/.dev  ## the whole suite, except the slow tests (10 minutes)
	.venv/bin/python tests/fetch_transformers_tests.py
	.venv/bin/python -m pytest $(PARALLEL)

test-core: .venv/.dev  ## the tests of model, tokenizer, loss, loader, checkpoint and card, for work in progress (1 minute)
	.venv/bin/python -m pytest $(PARALLEL) $(CORE:%=tests/*/test_%.py)

test-slow: .venv/.dev  ## the slow tests alone
	.venv/bin/python tests/fetch_transformers_tests.py
	.venv/bin/python -m pytest -m slow

test-versions: .venv/.dev  ## what a release must pass: selected tests on the oldest and the newest allowed libraries
	.venv/bin/python tests/versions.py

quality: .venv/.dev  ## lint, formatting, and the rules of names and prose that a program can check
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python tests/wording.py

bench: .venv/.training  ## the measurements of training/bench that need no files of their own, one after the other
	for program in loader train_step denormals faults; do .venv/bin/python -m training.bench.$$program; done

constraints: .venv/.dev  ## write the versions in .venv to constraints.txt
	.venv/bin/python -c "$$FREEZE" > constraints.txt
	@touch $<

clean:  ## remove what building and testing leave behind; .venv, corpora and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# An extra is installed again when either of the files that decide what it means is newer than its stamp.
.venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[$*]' \
		| awk '/^(Collecting|Processing) / { sub(".*/", "", $$2); print $$1, $$2; fflush() } /^Successfully installed/'
	@touch $@

# Where Debian's python3-venv is missing, an unusable .venv would be left behind.
.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

define FREEZE
from importlib.metadata import distributions
from packaging.specifiers import SpecifierSet
from packaging.version import Version

print("# The versions that CI runs, on Python 3.11. Written by `make constraints`; use: pip install -c constraints.txt ...")
print("# Where a version has left Python 3.10 behind, pip chooses an older one there.")
for dist in sorted(distributions(), key=lambda dist: dist.name.lower()):
    if dist.name not in ("modeling-pleias", "pip"):
        runs_on_3_10 = SpecifierSet(dist.metadata["Requires-Python"] or "").contains("3.10")
        print(f"{dist.name}=={Version(dist.version).public}" + ("" if runs_on_3_10 else ' ; python_version >= "3.11"'))
endef
export FREEZE
