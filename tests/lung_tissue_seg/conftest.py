"""Fixtures of the segmenter's tests."""

import sys
from pathlib import Path

import pytest

from tests.lung_tissue_seg.bundle import BUNDLE, write_cohort


@pytest.fixture(autouse=True, scope="module")
def scripts_of_this_bundle():
    """Both bundles call their package ``scripts``; a process holds one, and other tests want the synthesizer's."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}
    sys.path.insert(0, str(BUNDLE))
    yield
    sys.path.remove(str(BUNDLE))
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules.update(others)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "cohort"
    write_cohort(folder)
    return folder
