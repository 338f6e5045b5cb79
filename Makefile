# Two commands on a machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# The small CPU build of torch is enough for coding; set TORCH=torch for the newest build with CUDA.
TORCH ?= torch==2.13.0

.PHONY: demo test check clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[train,dev]"
	touch $@

demo: .venv/installed
	@rm -rf demo && mkdir demo
	$(BIN)/tessera encode docs/photo.webp -o demo/photo.tsr --target-size 2k
	$(BIN)/tessera decode demo/photo.tsr -o demo/photo.png
	$(BIN)/tessera info demo/photo.tsr
	@$(BIN)/python -m benchmarks.compare docs/photo.webp demo/photo.tsr demo/photo.png

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf .venv demo
