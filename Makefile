# Everything runs in .venv, which the first target that needs it makes from the pinned, hashed constraints.
PYTHON ?= python3
BIN := .venv/bin
N ?= 200
JOBS ?= 2
SYNCED := .venv/.synced
NODE_SYNCED := tests/real/node/node_modules/.synced
SUITE_SYNCED := tests/conformance/node/node_modules/.synced
SDK_SYNCED := tests/conformance/.cache/.synced
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The tests start hundreds of processes. Without bytecode each would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help sync run test faults check fmt lint types imports cov wheel constraints clean
.PHONY: bench bench-growth bench-peers bench-stores bench-streams bench-recovery

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(SYNCED): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(NODE_SYNCED): tests/real/node/package-lock.json $(SYNCED)
	cd tests/real/node && npm ci --loglevel=error --no-audit --no-fund
	@touch $@

sync: $(SYNCED) $(NODE_SYNCED) ## make or update .venv and the tests' Node packages

run: $(SYNCED) ## a sample MCP server, the proxy in front of it, and what to try next
	$(BIN)/shadowcat demo

# In the files' order: by default those with the fewest tests, which are the longest, would be left for the end.
test: sync ## all tests, JOBS files at a time, with the branch coverage floor
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

faults: sync ## run N random schedules of faults (make faults N=1000), and real clients for 30 s; `make test` runs a few
	$(BIN)/python -m tests.faults --count $(N)
	SURVIVING_SECONDS=30 $(BIN)/pytest tests/real/test_surviving.py

$(SUITE_SYNCED): tests/conformance/node/package-lock.json $(SYNCED)
	cd tests/conformance/node && npm ci --loglevel=error --no-audit --no-fund
	@touch $@

# The examples are in the source distribution only, of the version that is pinned.
$(SDK_SYNCED): constraints.txt $(SYNCED)
	rm -rf $(@D) && mkdir -p $(@D)
	sed -n '/^mcp==/,/^    # via/p' constraints.txt > $(@D)/mcp.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary mcp \
	  --require-hashes -r $(@D)/mcp.txt -d $(@D)
	cd $(@D) && tar -xzf mcp-*.tar.gz
	@touch $@

.PHONY: conformance
conformance: sync $(SUITE_SYNCED) $(SDK_SYNCED) ## the official suite, the SDKs' examples and clients: directly and through the proxy
	$(BIN)/python -m tests.conformance

check: sync ## what CI runs
	$(MAKE) --jobs=$(JOBS) --output-sync lint types imports wheel
	$(MAKE) test

fmt: $(SYNCED) ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(SYNCED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(SYNCED)
	$(BIN)/mypy
	$(BIN)/mypy tests

imports: $(SYNCED)
	$(BIN)/lint-imports --no-cache

wheel: $(SYNCED) ## build the wheel, install it into an empty environment, run the tests against it there
	$(BIN)/python tests/wheel.py

bench: $(SYNCED) ## measure against direct, nginx and a naive proxy (benchmarks/README.md)
	$(BIN)/python -m benchmarks

bench-growth: $(SYNCED) ## measure a call beside 10, 1,000 and 100,000 sessions (benchmarks/README.md)
	$(BIN)/python -m benchmarks growth

bench-peers: $(SYNCED) ## measure other MCP proxies, installed into .bench/ (benchmarks/README.md)
	$(BIN)/python -m benchmarks peers

bench-stores: $(SYNCED) ## measure the session stores, alone and under the proxy (benchmarks/README.md)
	$(BIN)/python -m benchmarks stores

bench-streams: $(SYNCED) ## measure streams: latency, CPU, floods, thousands idle, start (benchmarks/README.md)
	$(BIN)/python -m benchmarks streams

bench-recovery: $(SYNCED) ## measure how long things take to go on after each fault (benchmarks/README.md)
	$(BIN)/python -m benchmarks recovery

constraints: ## compile constraints.txt anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links --extra dev --upgrade pyproject.toml -o constraints.txt

clean: ## remove all that the other targets made
	rm -rf .venv .bench tests/real/node/node_modules tests/conformance/node/node_modules tests/conformance/.cache dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
