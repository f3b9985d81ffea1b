# `make run` and `make test` are all that a fresh clone needs; both create .venv once.

PYTHON ?= python3
VENV ?= .venv
BACKEND ?= file
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OTHER_PYTHONS := 3.12 3.13

# Half as many again as there are cores: many tests wait for other processes.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(max(2, (os.cpu_count() or 1) * 3 // 2))')
PYTEST_ARGS ?= -n $(WORKERS) --dist worksteal
PLUGINS := $(wildcard plugins/*)

# Containers often set it. The tests start hundreds of processes, and each would compile everything.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run cluster test test-all bench kit-docs lint format proto clean

run: $(STAMP)
	$(BIN)/python examples/run_demo.py --backend $(BACKEND)

# Three nats-servers and three nodes on loopback until Ctrl-C; the directory dengine-cluster is kept.
cluster: $(STAMP)
	$(BIN)/dengine-sm cluster up --nodes 3

test: lint
	TMPDIR=$$($(BIN)/python tests/scratch.py) $(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: test
	@for version in $(OTHER_PYTHONS); do \
	  if python$$version --version >/dev/null 2>&1; then \
	    echo "== Python $$version"; \
	    $(MAKE) PYTHON=python$$version VENV=.venv-$$version test || exit 1; \
	  else \
	    echo "== Python $$version is not installed; skipped"; \
	  fi; \
	done

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks.run

# The picture comes from the whole kit over every broken machine: several minutes.
kit-docs: $(STAMP)
	$(BIN)/python tests/kit/matrix.py table
	$(BIN)/python tests/kit/matrix.py run

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Generated code refuses an older runtime, so the oldest tools that the extra `server` allows.
proto:
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check \
	  'grpcio-tools==1.80.0' 'setuptools<81'
	.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	  --grpc_python_out=. $(wildcard dengine_sm/server/*.proto)

$(STAMP): pyproject.toml $(addsuffix /pyproject.toml,$(PLUGINS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed:" \
	    "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,uvloop]' \
	  $(foreach plugin,$(PLUGINS),-e '$(plugin)[test]')
	@touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
