# Starts from bare python3 and make: every target makes the environment that it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := .venv-bench
# Inputs of `make bench`: a folder with at least 512 JPEGs (the demo has six), and a source for `fashion-jax embed`.
PHOTOS ?= runs/demo/photos
SOURCE ?= synthetic:20000
AOT := .venv-aot

XDIST := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all faults bench bench-accelerators check format clean

help:
	@echo "make demo      environment, then the demonstration (two to four minutes on 2 cores)"
	@echo "make test      environment, then the tests but for slow ones"
	@echo "make test-all  environment, then all tests: kills, wheels and many processes too"
	@echo "make faults    environment, then damage, kills and full disks in their long form (half an hour on 2 cores)"
	@echo "make bench     environment with the peers, then all benchmarks (hours; PHOTOS=folder SOURCE=catalogue)"
	@echo "make bench-accelerators  compiles all steps for TPUs and H100s, on a machine without them (a night on 2 cores)"
	@echo "make check     environment, then lint, formatting and types"
	@echo "make env       the environment alone, in $(VENV)"
	@echo "make format    formats the code"
	@echo "make clean     removes the environment and caches (runs/ stays)"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "error: Python 3.11, 3.12 or 3.13 is needed, and '$(PYTHON)' is not; run: make PYTHON=python3.12 ..."; exit 2; }
	@echo "making the environment in $(VENV), about two minutes and 3 GB"
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu run: apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/fashion-jax demo

test: $(STAMP)
	@$(BIN)/python -m pytest $(XDIST) -m 'not slow'

test-all: $(STAMP)
	@$(BIN)/python -m pytest $(XDIST)

faults: $(STAMP)
	@$(BIN)/python -m tests.faults --out faults.md

bench: $(STAMP)
	@test -d $(PHOTOS) || $(BIN)/fashion-jax demo
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@mkdir -p runs/bench
	@$(BENCH)/bin/python benchmarks/start_up.py --photo "$$(ls $(PHOTOS)/*.jpg | head -1)"
	@$(BENCH)/bin/python benchmarks/predict.py --photos $(PHOTOS)
	@$(BENCH)/bin/python benchmarks/train_step.py --cases goal growth
	@$(BENCH)/bin/fashion-jax prepare --source $(SOURCE) --out runs/bench/records
	@$(BENCH)/bin/python benchmarks/input.py --records runs/bench/records
	@$(BENCH)/bin/python benchmarks/checks.py --records runs/bench/records --out benchmarks/results/checks
	@$(BENCH)/bin/python benchmarks/growth.py
	@$(BENCH)/bin/fashion-jax embed --model small --source $(SOURCE) --out runs/bench/embeddings.npz
	@$(BENCH)/bin/python benchmarks/search.py --embeddings runs/bench/embeddings.npz --clustered 200000 2000000

bench-accelerators: $(STAMP)
	@$(PYTHON) -m venv $(AOT)
	@$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[tpu]'
	@$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check nvidia-cuda-nvcc-cu12 \
		"jax-cuda12-plugin==$$($(AOT)/bin/python -c 'import jax; print(jax.__version__)')"
	@$(AOT)/bin/python benchmarks/accelerators.py

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BENCH) $(AOT) .cache .mypy_cache .pytest_cache .ruff_cache
