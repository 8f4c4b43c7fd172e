# Each makes the environment first.
# make all: train the digits preset and draw every figure.   make figures: every page of every preset, from the committed runs.
# make test: every check.
PYTHON ?= python3
PRESET ?= digits
CORES ?= 4
BIN := .venv/bin
PYTEST_WORKERS ?= 2
PRESETS ?= digits cifar10 eoss

.PHONY: all figures test lint clean environment
.DEFAULT_GOAL := all

all: .venv/.ready
	$(BIN)/snakemake --cores $(CORES) all --config preset=$(PRESET)
	@echo; echo "Figures and pages of preset $(PRESET):"
	@ls figures/$(PRESET)/*.png figures/$(PRESET)/*.pdf figures/$(PRESET)/*.html

figures: .venv/.ready
	@for preset in $(PRESETS); do \
	  $(BIN)/snakemake --cores $(CORES) all --config preset=$$preset runs=committed || exit 1; \
	done
	@echo; echo "Open figures/index.html in a browser."

test: .venv/.ready
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/mypy
	$(BIN)/snakemake --lint

environment: .venv/.ready

# uv where it is there, else pip; both take the versions from constraints.txt.
.venv/.ready: pyproject.toml constraints.txt
	@if command -v uv > /dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) .venv; \
	  VIRTUAL_ENV=.venv uv pip install -c constraints.txt -e ".[all]"; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"; \
	fi
	@touch $@

clean:
	rm -rf data/runs logs figures/smoke .snakemake

# Make the runs you trained the committed ones (the figures of the same preset belong with them).
.PHONY: reference
reference:
	rm -rf data/reference/$(PRESET)
	mkdir -p data/reference/$(PRESET)
	cd data/runs/$(PRESET) && find . -name 'seed*.parquet' -exec cp --parents {} ../../reference/$(PRESET)/ \;
