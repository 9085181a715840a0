# Everything a fresh clone needs: `make demo`, `make test`, `make docs`.
# PIP_OPTIONS='--extra-index-url URL', with the URL of the CPU build that pytorch.org names, takes the smaller wheels.
PYTHON ?= python3
PIP_OPTIONS ?=
FUZZ_MINUTES ?= 5
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install install-test chromium demo docs test pytest fuzz lint clean

# What is imported is compiled when it first is: of all that is installed, that is a small part.
INSTALL := $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade pip \
	&& $(BIN)/python -m pip install --quiet --no-compile $(PIP_OPTIONS) -e

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(INSTALL) ".[demo]"
	touch $@

install-test: $(VENV)/.installed-test chromium

$(VENV)/.installed-test: pyproject.toml
	$(INSTALL) ".[demo,app,test]"
	touch $(VENV)/.installed $@

chromium:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; }

demo: install
	HF_HUB_OFFLINE=1 $(BIN)/accelerate launch recipes/unlearn_clip.py --overwrite

# The API reference from the docstrings, as pages in build/docs; a warning is an error.
docs: install
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -e ".[docs]"
	$(BIN)/python docs/build_api.py

lint: install-test
	$(BIN)/ruff check hf_unlearn recipes tests
	$(BIN)/ruff format --check hf_unlearn recipes tests
	$(BIN)/mypy

# `make -j2 test` installs the browser while the libraries are installed, and lints while the first tests run.
test: lint pytest

pytest: install-test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# Every parser on files that are almost right, for so many minutes in all; what fails is kept in tests/fuzz/corpus.
fuzz: install-test
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m fuzz.run --minutes $(FUZZ_MINUTES)

clean:
	rm -rf $(VENV) runs report build *.egg-info
