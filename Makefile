# make demo   from nothing to a trained, scored U-Net and pictures of what it sees
# make check  what make lint does, the examples in docstrings and documents, and the tests that start no process
# make test   the whole test suite
# make soak   long campaigns of random kills and of mutated files
# make bench  every CPU speed and memory figure of docs/performance.md; keep the machine free of other work
# make lint   ruff, codespell and mypy
# Each sets up what it needs in .venv; PYTHON=python3.12 chooses another Python (3.11 to 3.13).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo check test soak bench lint
.DELETE_ON_ERROR:

$(VENV)/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found; 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp per set of dependencies: nothing is installed twice.
$(VENV)/installed-%: $(VENV)/made pyproject.toml setup.py constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/installed-core
	$(BIN)/python -m data_prep.synthesize --cityscapes_dir=$(DEMO)/dataset --train_images=400 --val_images=60 --size=128x256
	$(BIN)/python -m data_prep.build_tfrecords --cityscapes_dir=$(DEMO)/dataset --data_dir=$(DEMO)/data
	$(BIN)/python -m unet.main --config=configs/synthetic.py --data_dir=$(DEMO)/data --workdir=$(DEMO)/run
	$(BIN)/python -m unet.predict --workdir=$(DEMO)/run --images=$(DEMO)/dataset/leftImg8bit/val --output_dir=$(DEMO)/predictions
	$(BIN)/python -m unet.evaluate --workdir=$(DEMO)/run --data_dir=$(DEMO)/data
	@echo 'Report: $(DEMO)/run/report.html   Pictures: $(DEMO)/predictions/panels   TensorBoard: $(BIN)/tensorboard --logdir=$(DEMO)/run'

check: lint $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 -m 'check or not (process or soak)' -q

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(VENV)/installed-test
	$(BIN)/python -m pytest -m soak -s

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks --folder=benchmark

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
