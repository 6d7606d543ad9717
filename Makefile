# make verify: the main job.  make test: every test.  make bench: the comparisons.  make faults: the kill matrix.
# make lessons: the lessons' training runs, half an hour on two cores.  make gpu: what a GPU has to show.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# pytest-benchmark is off under xdist. Two workers with two threads each would wait for one another.
SERIAL := harness/tests/bench/test_benchmarks.py

# The text and GPT-2's vocabulary, where a copy is already at hand; otherwise they are downloaded.
ifneq ($(wildcard ../shared/data),)
export GPT_HARNESS_DATA ?= $(abspath ../shared/data)
export TIKTOKEN_CACHE_DIR ?= $(abspath ../shared/data/tiktoken)
endif

# make gpu: the suites and the quick benchmarks on DEVICE, with a Python that has the packages. Nothing is installed.
DEVICE ?= cuda
HERE := PYTHONPATH=. PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTHON) -m pytest -p harness.pytest_plugin.hooks

.PHONY: verify test bench gpu faults lessons report setup clean

verify: $(STAMP)
	$(BIN)/pytest verifications/

bench: $(STAMP)
	$(BIN)/pytest benchmarks/ --benchmark-autosave

gpu:
	status=0; \
	$(HERE) verifications/ --device $(DEVICE) --subject gpt:GPT || status=1; \
	$(HERE) -p pytest_benchmark.plugin benchmarks/ --quick --device $(DEVICE) || status=1; \
	exit $$status

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy harness gpt benchmarks
	$(BIN)/pytest verifications/
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --ignore=$(SERIAL)
	$(BIN)/pytest $(SERIAL)

faults: $(STAMP)
	$(BIN)/gpt-harness faults

lessons: $(STAMP)
	$(BIN)/gpt-harness lessons

report: $(STAMP)
	$(BIN)/gpt-harness report

setup: $(STAMP)

# Installed again only when the lock or the package's own metadata change.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gpt-harness needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info
