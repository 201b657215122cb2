# The commands a person types. Only Python (3.11 or newer) and make are needed; all else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: run test bench torture lint install lock page-libraries clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: run make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)  ## train, evaluate, translate and plot on the embedded dataset
	$(BIN)/python experiments/quickstart.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto tests

CONFIG ?= configs/phrases.py
bench: $(STAMP)  ## speed, memory and start-up of CONFIG on this machine: bench.json, and bench.md to paste
	$(BIN)/python experiments/benchmark.py all --config=$(CONFIG) --output=bench.json --markdown=bench.md

torture: $(STAMP)  ## kill runs at random moments and damage their checkpoints; see docs/survival.md
	$(BIN)/python experiments/torture.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:  ## pin every dependency with its hashes; needs uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-header --extra dev pyproject.toml requirements.build.in -o requirements.txt

page-libraries:  ## bundle what the Spotlight page carries, anew; needs Node.js
	cd transformer_jax/analysis/spotlight/page/libraries && npm ci --ignore-scripts && node bundle.js

clean:
	rm -rf .venv
