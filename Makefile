# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need in .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-chain test lint docs chain-tools contracts neon sanitize constraints clean

READY := .venv/.ready
CLIENTS := .venv/.clients
BIN := .venv/bin
# One more than there are cores, since many tests wait for a network's processes; each may run a network of its own.
TEST_PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 8 ? n + 1 : 8)))

# Programs in .venv hold their own path: in a checkout that was moved they are made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(shell pwd -P))
$(shell rm -f $(READY))
endif

help:
	@echo "make demo         start a network on this machine, ask it, check the receipts"
	@echo "make demo-chain   money at stake on a real Ethereum node: one operator lies, and a stranger wins its stake"
	@echo "make test         everything CI checks: ruff, mypy, pytest (PYTEST_ARGS= for more)"
	@echo "make lint         ruff and mypy only"
	@echo "make docs         the documentation as a site in site/; a broken link ends it"
	@echo "make neon         the ARM build of the engine against the vectors, under an emulator"
	@echo "make sanitize     the engine against the vectors with the compiler's sanitizers"
	@echo "make contracts    compile the contracts; their artefacts are checked in"
	@echo "make chain-tools  the contracts' compiler and a real test node, from npm, below contracts/"
	@echo "make setup        only make .venv (PYTHON= chooses the interpreter)"
	@echo "make constraints  pin what .venv holds now"
	@echo "make clean        remove .venv and caches; never a state directory"

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh native/CMakeLists.txt $(wildcard native/src/*)
	@PYTHON="$(PYTHON)" sh scripts/setup.sh
	@pwd -P > $@

demo: $(READY)
	@$(BIN)/aos demo

demo-chain: $(READY) chain-tools
	@$(BIN)/aos demo-chain

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(CLIENTS)
	$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

$(CLIENTS): $(READY)
	@echo "setup: installing clients that only the tests use"
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt langchain-openai
	@touch $@

docs: $(READY)
	@$(BIN)/python scripts/make_site.py

# Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static
neon: $(READY)
	$(BIN)/python scripts/native_check.py --neon

sanitize: $(READY)
	$(BIN)/python scripts/native_check.py --sanitize address,undefined

chain-tools: contracts/node_modules/.ready

contracts/node_modules/.ready: contracts/package-lock.json
	cd contracts && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

contracts: chain-tools
	cd contracts && node compile.mjs

constraints:
	@{ echo "# Every version that make setup installs. Made by make constraints."; \
	   $(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable; } > constraints.txt

clean:
	rm -rf .venv contracts/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
