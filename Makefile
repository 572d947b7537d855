# make demo: the whole chain on drawn patients.  make test: everything but integrations.  make check: the quick part.
# make test-integrations: install MONAI Label, MONAI Deploy, Triton, NVFlare, nnU-Net, MLflow, OHIF, Dask's; prove each.
# make weights CT=FOLDER: the segmenter from normal CTs, hours on two cores; started again, it goes on.
PYTHON ?= python3
BIN := .venv/bin

# each is installed in a .venv-NAME of its own from tests/integrations/requirements-NAME.txt
INTEGRATIONS := label deploy triton federated nnunet mlflow ohif cluster
OHIF := 3.12.10

.PHONY: demo weights test check lint clean test-integrations

demo: .venv/.run
	$(BIN)/python -m tools demo --output demo

weights: .venv/.run
	$(BIN)/python -m tools weights --ct $(CT) --output made

test: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not integration"

check: .venv/.dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not integration"

test-integrations: .venv/.dev $(INTEGRATIONS:%=.venv-%/.ready)
	$(BIN)/pytest tests/integrations -m integration

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

.venv/.run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# torch and torchvision of one build; no isolation, so that sam2 is not built beside a torch of its own
.venv-label/.ready: tests/integrations/requirements-label.txt
	$(PYTHON) -m venv .venv-label
	.venv-label/bin/pip install --quiet --disable-pip-version-check --constraint $< torch torchvision setuptools wheel
	SAM2_BUILD_CUDA=0 .venv-label/bin/pip install --quiet --disable-pip-version-check --no-build-isolation -r $<
	touch $@

# OHIF comes built in its npm package, of which only the files are wanted; without npm its tests are skipped
.venv-ohif/.ready: tests/integrations/requirements-ohif.txt
	$(PYTHON) -m venv .venv-ohif
	.venv-ohif/bin/pip install --quiet --disable-pip-version-check -r $<
	(cd .venv-ohif && npm pack --silent @ohif/app@$(OHIF) && tar xzf ohif-app-$(OHIF).tgz) || echo "no OHIF: npm failed"
	touch $@

.venv-cluster/.ready: tests/integrations/requirements-cluster.txt
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv-%/.ready: tests/integrations/requirements-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 setuptools wheel
	PIP_CONSTRAINT=$< .venv-$*/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf .venv .venv-* demo
