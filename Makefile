# `make quickstart` and `make test` are all a newcomer needs; both make the environment first.

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= output/quickstart
CONFIG ?= configs/shapes/panoptic-segmentation/maskformer2_R18_quickstart.yaml
VIDEO_OUTPUT ?= output/quickstart_video
FRAMES_CONFIG ?= configs/shapes/video-instance-segmentation/maskformer2_R18_quickstart_frames.yaml
VIDEO_CONFIG ?= configs/shapes/video-instance-segmentation/maskformer2_R18_quickstart.yaml
OPTS ?=
TORCH ?= torch torchvision
KILLS ?= 1000
# Processes of the tests; each takes up to 3 GB.
JOBS ?= 2
# What depends on the versions of Python, torch and numpy, in four minutes.
FAST_TESTS ?= $(addprefix tests/,structures config files ops modeling checkpoint data_pipeline)
NUM_PICTURES ?= 12
# Of `make fuzz`: seconds for each form of file, or a number of inputs instead; which forms (all).
TIME ?= 60
RUNS ?=
TARGETS ?=
NUM_VIDEOS ?= 4
DETECTRON2_DATASETS ?= datasets
export DETECTRON2_DATASETS

PY := $(VENV)/bin/python
# What is installed follows from these files: another content, another stamp, another installation.
SOURCES := pyproject.toml setup.py $(sort $(shell find mask2former/ops/csrc -type f 2>/dev/null))
KEY := $(shell cat $(SOURCES) 2>/dev/null | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)
SHAPES := $(DETECTRON2_DATASETS)/shapes

.PHONY: help env quickstart quickstart-video test test-fast test-all chaos fuzz fuzz-commands check docs fix bench clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   train, evaluate and draw on an embedded data set"
	@echo "make quickstart-video   the same with videos: instances that keep their identity"
	@echo "make test         run the tests, in JOBS=2 processes"
	@echo "make test-fast    operators, model, checkpoints, config, files and data only"
	@echo "make chaos        kill a training at random moments ($(KILLS) times) and at each change of a file, resume it, compare it"
	@echo "make fuzz         change files at random and read them, TIME=60 seconds a form, or RUNS=100000 inputs; TARGETS=coco"
	@echo "make fuzz-commands   run commands with something wrong in them, for TIME=60 seconds"
	@echo "make check        linter, formatter, types, import layers, documentation"
	@echo "make docs         build the documentation into site/"
	@echo "make fix          let linter and formatter mend what they can"
	@echo "make bench        measure speed, and write what was found to docs/benchmarks.md"
	@echo "make clean        remove builds and caches; the environment ($(VENV)), data and output stay"
	@echo "PYTHON=python3.12 and VENV=path choose interpreter and environment."

env: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make virtual environments; install its venv package" >&2; exit 1; }
	$(PY) -m pip install --quiet --upgrade pip
# torch and torchvision in one request, and before anything that asks for torch alone: only so are they a matching pair.
	$(PY) -m pip install $(TORCH)
	$(PY) -m pip install -e '.[dev]'
	@$(PY) -c 'import torch, torchvision; torchvision.ops.nms' || \
	  { echo "error: torch and torchvision in $(VENV) do not fit together; remove $(VENV) and run make again" >&2; exit 1; }
	@rm -f $(VENV)/.installed-*
	@touch $@

quickstart: $(STAMP)
	$(PY) datasets/prepare_shapes.py
	$(PY) tools/train_net.py --config-file $(CONFIG) OUTPUT_DIR $(OUTPUT) $(OPTS)
	$(PY) demo/demo.py --config-file $(CONFIG) --input $$(ls $(SHAPES)/val/*.jpg | head -n $(NUM_PICTURES)) \
	  --output $(OUTPUT)/pictures --task panoptic instance semantic --opts MODEL.WEIGHTS $(OUTPUT)/model_final.pth
	$(PY) tools/show_results.py $(OUTPUT)

# What things look like is learnt from single frames, then their identity over time from clips.
quickstart-video: $(STAMP)
	$(PY) datasets/prepare_shapes.py
	$(PY) tools/train_net.py --config-file $(FRAMES_CONFIG) OUTPUT_DIR $(VIDEO_OUTPUT)/frames DATASETS.TEST '()' $(OPTS)
	$(PY) tools/train_net.py --config-file $(VIDEO_CONFIG) OUTPUT_DIR $(VIDEO_OUTPUT) \
	  MODEL.WEIGHTS $(VIDEO_OUTPUT)/frames/model_final.pth $(OPTS)
	$(PY) tools/frames_to_video.py $$(ls -d $(SHAPES)/video_val/JPEGImages/* | head -n $(NUM_VIDEOS)) \
	  --output $(VIDEO_OUTPUT)/clips
	$(PY) demo/demo.py --config-file $(VIDEO_CONFIG) --video-input $(VIDEO_OUTPUT)/clips --output $(VIDEO_OUTPUT)/videos \
	  --confidence-threshold 0.5 --opts MODEL.WEIGHTS $(VIDEO_OUTPUT)/model_final.pth
	$(PY) tools/show_results.py $(VIDEO_OUTPUT)

test: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu" $(OPTS)

test-fast: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu" --no-header -q $(FAST_TESTS) $(OPTS)

test-all: $(STAMP)
	$(PY) -m pytest $(OPTS)

fuzz: $(STAMP)
	$(PY) -c 'import atheris' 2> /dev/null || $(PY) -m pip install --quiet -e '.[fuzz]'
	$(PY) -m tests.faults.fuzz $(TARGETS) --time $(TIME) $(if $(RUNS),--runs $(RUNS)) $(OPTS)

# Whole commands with an option, key, file or checkpoint that is wrong.
fuzz-commands: $(STAMP)
	$(PY) -m tests.faults.command_lines --time $(TIME) $(OPTS)

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(MAKE) --no-print-directory docs

chaos: $(STAMP)
	$(PY) -m tests.faults.chaos $(KILLS)
	$(PY) -c 'import ckpt_chaos' 2> /dev/null || $(PY) -m pip install --quiet -e '.[chaos]'
	$(PY) -m tests.faults.file_boundaries

# Pages that follow from the code first; --strict makes a broken link an error.
docs: $(STAMP)
	$(PY) tools/make_docs.py
	$(PY) -m zensical build --clean --strict

fix: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP)
	$(PY) benchmarks/ms_deform_attn.py
	$(PY) benchmarks/convolution.py
	$(PY) benchmarks/convolution.py --training
	$(PY) benchmarks/inference.py
	$(PY) benchmarks/inference.py --dtype bfloat16
	$(PY) benchmarks/inference.py --model Swin-T
	$(PY) benchmarks/inference.py --scaling
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/training.py
	$(PY) benchmarks/data_loading.py
	$(PY) benchmarks/evaluation.py
	test ! -f $(OUTPUT)/model_final.pth || $(PY) benchmarks/precision.py $(CONFIG) $(OUTPUT)/model_final.pth
	$(PY) tools/make_benchmarks.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache htmlcov site .coverage .coverage.* coverage.xml
	rm -rf mask2former/ops/lib
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed-*
