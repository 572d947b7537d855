"""Fixtures of all tests."""

from unittest import mock

import pytest


@pytest.fixture(autouse=True, scope="session")
def garbage_waits():
    """Statsmodels collects garbage each time it corrects p values: .2 s in a process that has imported so much."""
    with mock.patch("gc.collect", lambda generation=2: 0):
        yield


@pytest.fixture
def without_ink(monkeypatch):
    """For tests that do not look at pictures: figures are laid out as ever, but drawn as one pixel."""
    from matplotlib.figure import Figure
    from PIL import Image

    def savefig(figure, path, **options):
        Image.new("L", (1, 1)).save(path, format="png")

    monkeypatch.setattr(Figure, "savefig", savefig)
