# Everything a newcomer needs: make demo, make ui, make test. Each sets up .venv by itself.

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: demo ui test lint lock bench help

help:
	@echo "make demo   watch a manifest being planned, rotated, verified and reported against a simulated Jelou"
	@echo "make ui     the Prefect UI with all deployments on a simulated Jelou, to click through; ARGS='--port 4301'"
	@echo "make test   run the tests"
	@echo "make lint   run the linter, the formatter's check and the type checker"
	@echo "make lock   resolve the dependencies again"
	@echo "make bench  measure the speed, some twelve minutes; ARGS='--quick': less"

demo: .venv/ready
	@$(PY) deployments/demo.py

ui: .venv/ready
	@$(PY) deployments/ui.py $(ARGS)

# Three on two cores: some tests mostly wait. In the order of collection, which puts the longest first.
test: .venv/ready
	@$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

bench: .venv/ready
	@$(PY) benchmarks/bench.py $(ARGS)

lint: .venv/ready
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

# A constraint names what the other lock chose, so that both hold the same versions.
lock: .venv/ready
	$(PY) -m uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --custom-compile-command "make lock" --group dev pyproject.toml -o requirements-dev.txt
	$(PY) -m uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --custom-compile-command "make lock" -c requirements-dev.txt pyproject.toml -o requirements.txt

# --no-deps: the lock is complete, and pip's resolver trips over a hashed requirement that somebody else wants with extras.
.venv/ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv: about a minute the first time ..."
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --quiet --require-hashes --no-deps -r requirements-dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
