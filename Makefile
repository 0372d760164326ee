# Farm: what can be made. `make` alone prints this list.
.DEFAULT_GOAL := help
.PHONY: help install demo demo-model up test gpu-check chaos check format clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## install Farm and its tools into .venv

# The tested set of versions; torch alone is several gigabytes, so the first run takes a while. Most
# of its modules are never imported, so each is compiled when it is.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-c constraints.txt -e '.[worker,dev]'
	@touch $@

demo: $(INSTALLED) ## start a farm, make pictures, leave it running
	$(BIN)/farm demo

demo-model: $(INSTALLED) ## train the demo checkpoint from nothing into build/demo: two hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r demo/requirements.txt
	$(BIN)/python -m demo.train
	$(BIN)/python -m demo.evaluate build/demo/demo.safetensors

up: $(INSTALLED) ## start a farm and stay with it
	$(BIN)/farm up

# Four at a time on two cores: many tests wait for processes. Each has servers of its own. What is
# compiled is kept, whatever the environment says: hundreds of processes start.
test: $(INSTALLED) ## run the whole suite on real servers
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

gpu-check: $(INSTALLED) ## on a machine with a GPU: is everything right? about five minutes
	$(BIN)/farm doctor
	$(BIN)/python -m pytest -m gpu -rs -p no:randomly tests/contract/test_on_a_card.py
	$(BIN)/python bench/engine.py --device cuda --repeats 1 --only "SD1.5 512, 1"

chaos: $(INSTALLED) ## break a farm 200 times during a batch, and check the books: a quarter of an hour
	$(BIN)/python -m tests.chaos

check: $(INSTALLED) ## style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what make has made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
