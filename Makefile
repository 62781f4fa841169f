# Everything runs in a virtual environment that is made on first use and renewed when pyproject.toml
# or constraints.txt change. `make` lists the targets.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= tf,mlflow,beamline,dev,docs
CONSTRAINTS ?= constraints.txt
ARGS ?=

BIN := $(VENV)/bin
PROGRAM := $(abspath $(BIN))/ptycho-torch
comma := ,
# One stamp for each set of extras, so that EXTRAS=dev first and all of them later installs the rest.
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
# Only a demo folder with this file is ours to write into.
DEMO_MARK := demo/.made-by-make-demo
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input

.PHONY: help venv demo pictures docs lock conformance selftest test lint types mutation benchmarks fuzz test-oldest clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'ARGS="…"        goes to pytest: make conformance ARGS="--parity-report parity-report"'
	@echo 'EXTRAS=dev      leaves TensorFlow out; what needs it is skipped'
	@echo 'PYTHON=…        the Python that makes the environment, 3.11 or later (now: $(PYTHON))'
	@echo 'CONSTRAINTS=…   the versions that it is made with (now: $(CONSTRAINTS))'
	@echo 'VENV=…          the environment (now: $(VENV))'

venv: $(STAMP) ## make the environment, with TensorFlow and the tools

demo: $(STAMP) ## simulate a scan, train on it with the defaults, reconstruct, evaluate: pictures in demo/
	@test ! -e demo || test -e $(DEMO_MARK) || { \
		echo "demo is there, and make demo did not make it: rename or remove it, and type make demo again." >&2; exit 1; }
	@mkdir -p demo && touch $(DEMO_MARK)
	cd demo && $(PROGRAM) simulate -o scans/star.npz --object siemens_star --contrast 0.3 --jitter 2 \
		--probe zone_plate --plot scan.png --overwrite
	cd demo && $(PROGRAM) check-data scans/star.npz
	cd demo && $(PROGRAM) train scans/star.npz -o run --overwrite
	cd demo && $(PROGRAM) infer run scans/star.npz -o reconstructions --overwrite
	cd demo && $(PROGRAM) evaluate reconstructions/star.npz --truth scans/star.npz --plot demo.png
	@echo "== reconstruction beside truth: demo/demo.png"

# blank.png shows a training that was too short.
pictures: demo ## make the pictures of the documents again, from those of the demo
	cd demo && $(PROGRAM) train scans/star.npz -o blank --max-epochs 1 --overwrite
	@$(BIN)/python docs/pictures/shrink.py demo/demo.png docs/pictures/demo.png demo/scan.png docs/pictures/scan.png \
		demo/reconstructions/star.png docs/pictures/reconstruction.png demo/run/history.png docs/pictures/history.png \
		demo/blank/reconstructions/star.png docs/pictures/blank.png

docs: $(STAMP) ## build the documentation site: build/site/index.html
	@$(BIN)/python docs/site/stage.py build/site-source
	@$(BIN)/python -m sphinx -W --keep-going -q -c docs/site -d build/site-cache build/site-source build/site
	@echo "== the site: build/site/index.html"

lock: ## write requirements.lock again from pyproject.toml and constraints.txt; needs the program uv
	uv pip compile pyproject.toml --all-extras --python-version 3.11 --universal --generate-hashes --no-annotate \
		--no-header --no-emit-index-url -c constraints.txt -q -o requirements.lock

conformance: $(STAMP) ## prove parity with the TensorFlow reference, layer by layer
	@echo "== conformance suite"
	@$(BIN)/python -m pytest conformance $(ARGS)

selftest: $(STAMP) ## put mistakes into the product, and see what the suite says of each (minutes)
	@$(BIN)/python -m conformance.selftest $(ARGS)

MINUTES ?= 5

fuzz: $(STAMP) ## give every reader damaged files and look for crashes (MINUTES=5; guided where atheris is installed)
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES) -o fuzz.json $(ARGS)

# Two processes with two threads each, on two cores, take three times as long as with one.
test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## run the tests of the packages
	@echo "== tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests $(ARGS)

# What uses most of the packages: training, resuming, reconstruction, tracking, Keras, reports.
OLDEST_TESTS := \
	tests/training/test_runs.py::test_nothing_is_unpickled_wherever_a_checkpoint_is_read \
	tests/training/test_runs.py::test_a_signal_ends_a_run_that_goes_on_exactly \
	tests/training/test_tracking.py::test_a_server_has_parameters_metrics_checkpoint_and_pictures \
	tests/bridge/test_export.py::test_keras_loads_the_model_and_gives_the_same_outputs \
	tests/bridge/test_export.py::test_keras_opens_the_model_with_pytorch_as_its_backend \
	tests/reports/test_plugin.py::test_a_report_is_written_whatever_the_flags_are

OLDEST_EXTRAS := tf,mlflow,beamline,dev

test-oldest: export OMP_NUM_THREADS = 1
test-oldest: ## install the oldest versions that pyproject.toml allows, and run some tests with them
	@$(MAKE) --no-print-directory venv VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt \
		EXTRAS=$(OLDEST_EXTRAS)
	@echo "== tests with the oldest versions"
	@.venv-oldest/bin/python -m pytest $(OLDEST_TESTS) $(ARGS)
	@.venv-oldest/bin/python -m pytest conformance --parity-reference recorded $(ARGS)

lint: $(STAMP) ## check the style
	@echo "== ruff"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: $(STAMP) ## check the types
	@echo "== mypy"
	@$(BIN)/python -m mypy

mutation: $(STAMP) ## mutation testing of the comparer: does a test catch each small change of it? (an hour)
	@$(BIN)/python benchmarks/mutation.py $(ARGS)

benchmarks: $(STAMP) ## measure the suite, the network beside Keras, the data path beside yardsticks (needs 13 GiB of disk)
	@$(BIN)/python benchmarks/suite.py
	@$(BIN)/python benchmarks/capture.py
	@$(BIN)/python benchmarks/network.py
	@$(BIN)/python benchmarks/data_path.py
	@$(BIN)/python benchmarks/import_master.py

clean: ## remove .venv, caches and builds
	test ! -e $(DEMO_MARK) || rm -rf demo
	rm -rf .venv .venv-oldest build dist parity-report .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find ptycho_torch ptycho_tf_bridge conformance tests -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python='$(PYTHON)'; if test -x '$(BIN)/python'; then python='$(BIN)/python'; fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "ptycho-torch needs Python 3.11 or later, and $$python is $$("$$python" -V 2>/dev/null || echo not there);" \
			"name another one: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x '$(BIN)/pip' || { echo "== making $(VENV) with $(PYTHON)"; '$(PYTHON)' -m venv '$(VENV)'; }
	@echo "== installing ptycho-torch[$(EXTRAS)] into $(VENV); the first time takes minutes"
	@$(PIP_INSTALL) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch '$(STAMP)'
