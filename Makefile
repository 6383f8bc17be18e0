# `make demo` and `make test` do all set-up on a fresh machine (Python 3.10 to 3.13, Linux) and nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo test quick soak lint clean

demo: $(VENV)/installed
	test -d corpora/demo || python launch/prepare.py synthetic --sequences 24000 --to corpora/demo validation_fraction=0.05
	deepspeed --num_gpus 1 launch/pretrain.py --config demo.yaml
	python launch/report.py runs/demo
	python launch/export.py runs/demo --to release/demo --overwrite

# Two files of tests at a time.
test: $(VENV)/installed-dev
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not soak"

quick: $(VENV)/installed-dev
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not soak"

# An estimated hour; as root with iproute2 it also cuts cables and fills disks.
soak: $(VENV)/installed-dev
	pytest -n 2 --dist loadfile --no-loadscope-reorder -m soak

lint: $(VENV)/installed-dev
	ruff check .
	ruff format --check .
	mypy

clean:
	rm -rf $(VENV) corpora/demo runs/demo release/demo

$(VENV)/created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"rnafoundry needs Python 3.10 to 3.13, and {sys.executable} is {v[0]}.{v[1]}; choose another one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
