"""Every test below this folder is an integration: left out of `make test`, run by `make test-integrations`."""

import shutil
from pathlib import Path

import pytest

from tests.integrations.consumers import ENVIRONMENTS, python_of, trained
from tools.bundles import BUNDLES
from tools.data.dataset import dataset
from tools.phantom.phantom import phantom

# they run inside Triton's server and beside it, and where a browser is driven
collect_ignore = ["triton_backend.py", "triton_server.py", "ohif_browser.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.integration)
        for name in ENVIRONMENTS:  # before any fixture trains a bundle in vain
            if item.get_closest_marker(name) and not python_of(name).is_file():
                item.add_marker(pytest.mark.skip(f"{name} is not installed; make .venv-{name}/.ready installs it"))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """``datalist.json`` of eight small drawn patients in two folds; ``images`` and ``labels`` lie beside its folder."""
    folder = tmp_path_factory.mktemp("cohort")
    phantom(folder / "phantom", patients=8, size=(96, 96, 12))
    for name in ("images", "labels"):
        (folder / "phantom" / name).rename(folder / name)
    patients = folder / "phantom/patients.csv"
    dataset(folder / "images", folder / "labels", folder / "dataset", patients=patients, folds=2)
    return folder / "dataset"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory) -> Path:
    """A copy of the segmenter's bundle with the weights that come with it."""
    root = tmp_path_factory.mktemp("bundles") / "lung_tissue_seg"
    left_out = shutil.ignore_patterns("__pycache__", "eval", "training.pt")
    return Path(shutil.copytree(BUNDLES / "lung_tissue_seg", root, ignore=left_out))


@pytest.fixture(scope="session")
def synthesizer(cohort, tmp_path_factory) -> Path:
    """A copy of the synthesizer's bundle, trained for 20 steps: enough to paint, not to paint well."""
    folder = tmp_path_factory.mktemp("bundles")
    small = {"batch_size": 2, "marginal_probability": 0.0, "measured_patches": 64, "val_interval": 1}
    return trained("difflung_synthesis", folder, cohort, max_epochs=1, epoch_length=20, **small)
