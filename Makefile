# `make setup` makes .venv with everything; `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

CLIENTS := older lowest harness vllm llama.cpp

.PHONY: setup demo test test-all clients docs lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "drpruning needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/drprune demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in site/: open site/index.html, no server is needed.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# Other people's software, each in an environment of its own; llama.cpp is compiled (minutes).
clients: $(CLIENTS:%=.clients/%/.ready)

.clients/%/.ready: tests/clients/environments/%.txt
	$(PYTHON) -m venv .clients/$*
	CMAKE_ARGS=-DLLAVA_BUILD=OFF .clients/$*/bin/python -m pip install --quiet \
	  --disable-pip-version-check -r $<
	# They may be built for a GPU, which torch for CPUs does not load; no text model needs them.
	.clients/$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# The converter is only in the package's source.
.clients/llama.cpp/.ready: .clients/older/.ready
	.clients/older/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --no-binary :all: --dest .clients/llama.cpp \
	  "$$(grep ^llama-cpp-python tests/clients/environments/older.txt)"
	tar -xzf .clients/llama.cpp/llama_cpp_python-*.tar.gz -C .clients/llama.cpp
	@touch $@

test-all: lint clients
	$(BIN)/python -m pytest $(PARALLEL) -m ''

clean:
	rm -rf $(VENV) .clients site .mypy_cache .pytest_cache .ruff_cache .hypothesis
