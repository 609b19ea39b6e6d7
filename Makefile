# make demo   set up, build the bundled model for a laptop RTX 4080 and for this machine, make a video
# make test   set up, run the tests (no GPU needed)
# Everything below is plain pip and rtgen: where there is no make, type the commands.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PROMPT ?= a red hot air balloon drifting right over the mountains at sunset
VIDEO ?= demo.mp4

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-slow lint format wheel clean

demo: .venv/.compile
	$(BIN)/rtgen build --gpu rtx4080-laptop --gpu cpu
	$(BIN)/rtgen run --prompt "$(PROMPT)" -o $(VIDEO)

test: .venv/.dev
	$(BIN)/python -m pytest

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: .venv/.dev
	$(BIN)/python -m scripts.make_wheel

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(d, ignore_errors=True) for d in ('.venv', 'dist')]"

# torch goes first, so that nothing else chooses its build. TORCH= installs none, where there is one already.
.venv/.compile: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rtgen needs Python 3.11 or newer: make PYTHON=...')"
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --editable ".[compile]"
	$(PYTHON) -c "import pathlib; pathlib.Path('$@').touch()"

.venv/.dev: .venv/.compile
	$(PIP) install --quiet --editable ".[compile,dev]"
	$(PYTHON) -c "import pathlib; pathlib.Path('$@').touch()"
