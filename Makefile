# `make demo` and `make test` need Python 3.11 or later. `make test-light` tests an installation without torch, and `make viewer`,
# which needs npm, makes a folder for a web host.
#
# `make test` leaves out what needs more packages: learned codecs and classifiers (several gigabytes: torchvision needs a build of
# torch with CUDA), and Ray. In a fresh checkout, this tests everything in one environment:
#
#     make test TORCH="torch torchvision" EXTRAS=train,dev,bench,ray MARKERS=
PYTHON ?= python3
TORCH ?= torch==2.13.0
EXTRAS ?= train,dev
MARKERS ?= not learned and not ray
BIN := .venv/bin

.PHONY: demo test test-light viewer clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: .venv/installed
	@rm -rf demo && mkdir demo
	$(BIN)/tessera encode docs/photo.webp -o demo/photo.tsr --target-size 2k
	$(BIN)/tessera decode demo/photo.tsr -o demo/photo.png
	$(BIN)/tessera info demo/photo.tsr
	@$(BIN)/tessera models fetch lpips || true
	@$(BIN)/python -m benchmarks.tools.compare docs/photo.webp demo/photo.tsr demo/photo.png demo/comparison.webp

# One thread per worker: two workers of two threads each, on two cores, took ten times as long for small networks. Commands that
# tests run may set more: passive threads do not spin while they wait, which took four times as long.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile -m "$(MARKERS)"

.venv-light/installed: pyproject.toml
	$(PYTHON) -m venv .venv-light
	.venv-light/bin/pip install --quiet . pytest
	touch $@

test-light: .venv-light/installed
	.venv-light/bin/python -m pytest -m light

docs/viewer/node_modules/installed: docs/viewer/package-lock.json
	@command -v npm >/dev/null || { echo "make viewer needs npm, which is not installed (Debian: apt-get install npm)"; exit 1; }
	npm ci --prefix docs/viewer --ignore-scripts --no-audit --no-fund
	touch $@

viewer: .venv/installed docs/viewer/node_modules/installed
	$(BIN)/python docs/viewer/build.py viewer docs/viewer/node_modules/onnxruntime-web

clean:
	rm -rf .venv .venv-light demo viewer docs/viewer/node_modules
