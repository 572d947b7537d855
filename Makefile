# make demo: the whole chain on drawn patients.  make test: everything.  make check: the quick part.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint clean

demo: .venv/.run
	$(BIN)/python -m tools demo --output demo

test: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/.run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv demo
