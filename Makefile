# Two commands on a machine with Python 3.11 or later: `make demo` and `make test`. `make test-light` tests an installation without
# torch, and `make test-ray` what several machines do, on a cluster of one. Contributors to the benchmarks also run
# `make test-learned`, which needs several gigabytes: compressai, torchvision and the build of torch that they pin. `make viewer`
# needs npm, and makes a folder for a web host.
PYTHON ?= python3
BIN := .venv/bin
# The small CPU build of torch is enough for the tests; set TORCH=torch for the newest build with CUDA.
TORCH ?= torch==2.13.0

.PHONY: demo test test-light test-learned test-ray viewer clean

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
	@$(BIN)/tessera models fetch lpips || true
	@$(BIN)/python -m benchmarks.tools.compare docs/photo.webp demo/photo.tsr demo/photo.png demo/comparison.webp

# One thread per worker: two workers of two threads each, on two cores, took ten times as long for small networks.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.venv-light/installed: pyproject.toml
	$(PYTHON) -m venv .venv-light
	.venv-light/bin/pip install --quiet . pytest
	touch $@

test-light: .venv-light/installed
	.venv-light/bin/python -m pytest -m light

.venv-learned/installed: pyproject.toml
	$(PYTHON) -m venv .venv-learned
	.venv-learned/bin/pip install --quiet torch torchvision
	.venv-learned/bin/pip install --quiet --editable ".[bench,dev]"
	touch $@

test-learned: .venv-learned/installed
	.venv-learned/bin/python -m pytest -m learned

docs/viewer/node_modules/installed: docs/viewer/package-lock.json
	@command -v npm >/dev/null || { echo "make viewer needs npm, which is not installed (Debian: apt-get install npm)"; exit 1; }
	npm ci --prefix docs/viewer --ignore-scripts --no-audit --no-fund
	touch $@

viewer: .venv/installed docs/viewer/node_modules/installed
	$(BIN)/python docs/viewer/build.py viewer docs/viewer/node_modules/onnxruntime-web

.venv/with-ray: .venv/installed
	$(BIN)/pip install --quiet --editable ".[ray]"
	touch $@

test-ray: .venv/with-ray
	$(BIN)/python -m pytest -m ray

clean:
	rm -rf .venv .venv-light .venv-learned demo viewer docs/viewer/node_modules
