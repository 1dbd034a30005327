VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

BENCHMARKS ?= wire mixed arbiter

.DEFAULT_GOAL := help
.PHONY: help demo up test test-slow test-gpu lint lint-deploy docs format proto verify-proto release-proto bench constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# One environment, installed in two steps: what the demo needs, and what development needs on top.
$(VENV)/.demo: pyproject.toml constraints.txt
	@echo "setting up $(VENV): torch and friends, a minute or two the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) --editable '.[demo,dev]'
	@touch $@

# What renders, validates and builds the rest: some hundred megabytes of tools, for those who change deploy/ or docs/.
$(VENV)/.deploy: $(VENV)/.dev
	@$(PIP) --editable '.[demo,dev,deploy-lint]'
	@touch $@

# Prometheus itself, to check rules and scrapes with, where Debian's package can be had.
$(VENV)/.prometheus: $(VENV)/.demo
	@deploy/lint/prometheus.sh $(BIN)
	@touch $@

demo: $(VENV)/.demo ## the whole mesh, three real models, three tenants, real traffic; leaves nothing running
	@$(BIN)/python -m demo

up: $(VENV)/.demo ## the whole mesh in the foreground until Ctrl-C
	@$(BIN)/apportion up

test: $(VENV)/.dev ## every test that needs no GPU and takes no more than seconds
	@$(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.dev $(VENV)/.prometheus ## the tests that take longer
	@$(BIN)/pytest -m 'slow and not gpu and not deploy' --timeout 900

test-gpu: $(VENV)/.dev ## the tests that need a CUDA device; fails where there is none
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu: there is no CUDA device here")'
	@CUDA_DEVICE_MAX_CONNECTIONS=32 $(BIN)/pytest -m gpu --timeout 300
	@$(BIN)/python -m bench.gpu.on_cuda

lint: $(VENV)/.dev verify-proto ## ruff, mypy --strict, import contracts, contracts of the wire
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lint-deploy: $(VENV)/.deploy $(VENV)/.prometheus ## images, Compose, chart, rules and dashboards, without a container engine or a cluster
	@$(BIN)/python -m deploy.lint
	@$(BIN)/pytest -m deploy --timeout 900

docs: $(VENV)/.deploy ## the documentation as pages, in build/docs; a warning fails it
	@$(BIN)/python -m deploy.reference
	@$(BIN)/mkdocs build --strict --quiet --site-dir build/docs

format: $(VENV)/.dev ## what `lint` can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(VENV)/.dev ## generate services/_proto from protos/
	@$(BIN)/buf format -w protos
	@$(BIN)/python protos/generate.py

verify-proto: $(VENV)/.dev ## contracts linted, unbroken since the last release, and the generated code fresh
	@$(BIN)/buf lint protos
	@$(BIN)/buf format -d --exit-code protos
	@$(BIN)/buf breaking protos --against protos/released.binpb
	@$(BIN)/python protos/generate.py --check

release-proto: $(VENV)/.dev ## take today's contracts as the ones that must not break
	@$(BIN)/buf build protos -o protos/released.binpb

bench: $(VENV)/.dev ## the short benchmarks, each against a baseline of the same run; `python -m bench` lists all
	@$(BIN)/python -m bench $(BENCHMARKS)

constraints: $(VENV)/.dev ## write constraints.txt from what is installed
	@(sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --all --exclude-editable | grep -v "^pip==" | sed 's/+cpu//') > constraints.new && mv constraints.new constraints.txt

clean: ## remove the environment and every cache
	@rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
