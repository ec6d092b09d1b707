# make demo    text to a small DeepSeek that you can talk to: minutes on two cores, no GPU
# make test    the tests      make lint    style and types      make bench   the benchmarks      make clean
# Each sets up its own .venv when there is none, and again when pyproject.toml or constraints.txt change.

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

# Any Python 3.11-3.13 will do; choose another with `make PYTHON=/path/to/python3.12 ...`
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& { echo $$python; break; }; done)

demo: $(VENV)/demo.stamp
	$(BIN)/tinyseek run quickstart
	@if ! [ -t 0 ]; then \
	printf '%s\n/reset\n' 'Who are you?' 'How much is 7 plus 960?' '小梅喜欢吃什么？' 'Where does Tomas live?' | $(BIN)/tinyseek chat runs/quickstart/sft; \
	elif [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then $(BIN)/tinyseek serve runs/quickstart/sft browser=true; \
	else $(BIN)/tinyseek chat runs/quickstart/sft; fi

# A process for each core, each with one thread; a file's tests stay together, because they share what is slow to make.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	@for name in train decode batch stream prefix prepare adapters; do \
	echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@echo "These want a model or an hour; the first lines of each say how: load speculate quality classify lora grpo demo r1"

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself, so that a CPU build at hand is taken rather than the registry's CUDA one.
$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or say make PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
