# Everything runs in .venv, which the first target to need it creates from constraints.txt.
#   make test PYTHON=/usr/bin/python3.12      another interpreter (3.11 or newer)
#   make test ARGS="-k budget --slow"         arguments for the command that the target runs
#   make gpu PYTHON=python3                   its torch, Triton and the rest as they are: no .venv

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RESULT := .benchmarks/latest.json
GPU_RESULT := .benchmarks/gpu.json
ARGS   ?=
PIP    := $(BIN)/python -m pip -qq --no-input --disable-pip-version-check
# On Linux the CPU build, named as such: the plain version brings gigabytes of CUDA libraries.
TORCH  := $(shell grep '^torch==' constraints.txt)$(if $(filter Linux,$(shell uname -s)),+cpu)
# Asked only where the configured index lacks that build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

CUDA   := import sys, torch; sys.exit(not torch.cuda.is_available())
MODERN := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$name" -c '$(MODERN)' 2>/dev/null && echo "$$name" && break; done)

# Threads that spin while they wait would take the cores from each other's pools.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test docs bench paper gpu check clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

install: $(STAMP) ## create .venv and install the project with its development tools

demo: $(STAMP) ## prune the demo network in three ways; figures and a report in demo-out/
	@$(BIN)/spectral-engine demo $(ARGS)

# As many processes as processors; benchmarks do without.
test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

docs: $(STAMP) ## build the documentation site in build/site; a warning is an error
	@$(BIN)/python -m sphinx -W --keep-going -q docs build/site
	@echo "build/site/index.html"

bench: $(STAMP) ## run the speed suite, then print its ratios to a parallel copy
	@mkdir -p $(dir $(RESULT))
	@$(BIN)/python -m pytest --benchmark --benchmark-json=$(RESULT) $(ARGS)
	@$(BIN)/python bench/speed/report.py $(RESULT)

paper: $(STAMP) ## run the paper's tasks on the LeNets; results in bench/results/paper, under 60 minutes
	@for network in lenet-300-100 lenet-5; do for task in learning oneshot iterative; do \
		$(BIN)/spectral-engine reproduce $$task --network $$network $(ARGS) || exit 1; \
	done; done

# Installs nothing: with the first interpreter whose torch finds a device, PYTHON before .venv.
gpu: ## check every kernel on the CUDA device and time it, under 8 minutes; writes GPU_RESULT
	@for python in $(PYTHON) $(BIN)/python; do \
		if "$$python" -c '$(CUDA)' 2>/dev/null; then \
			PYTHONPATH=.:kernels "$$python" bench/gpu/suite.py --output $(GPU_RESULT) $(ARGS); \
			exit $$?; \
		fi; \
	done; \
	echo "make gpu: no CUDA device is found by torch in $(PYTHON) or $(BIN)/python." \
		"Name an interpreter whose torch is built for CUDA: make gpu PYTHON=python3" >&2; \
	exit 2

check: $(STAMP) ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## remove caches and builds
	@rm -rf build dist demo-out .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well, and what was measured and trained (.benchmarks)
	@rm -rf $(VENV) .benchmarks

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(MODERN)' || { \
		echo "Python 3.11 or newer is needed; none found as '$(PYTHON)'. Try make PYTHON=..." >&2; \
		exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@echo "Installing $(TORCH)"
	@$(PIP) install --constraint constraints.txt "$(TORCH)" 2>/dev/null || \
		$(PIP) install --constraint constraints.txt --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	@echo "Installing spectral-engine and its development tools"
	@$(PIP) install --constraint constraints.txt --build-constraint constraints.txt \
		--editable . --group dev
	@echo "Compiling the CPU kernels"
	@$(BIN)/python -c "from spectral_engine.demo import run, story; run.warm_up(seed=0); story.warm_up()"
	@touch $@
