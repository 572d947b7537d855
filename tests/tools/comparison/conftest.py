"""Twelve patients, and stand-ins for segmenter and synthesizer, for the tests of the comparison."""

import pytest

from tests.tools.fakes.standin import install, twelve_patients


@pytest.fixture
def datalist(tmp_path):
    return twelve_patients(tmp_path)


@pytest.fixture
def standin(monkeypatch):
    return install(monkeypatch)
