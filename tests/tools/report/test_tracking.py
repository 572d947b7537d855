"""What is refused before anything is written to MLflow; tests/integrations/test_mlflow.py writes to a real one."""

import sys

import pytest

from tools.io.files import InputError
from tools.report.tracking import track


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused(uri, tmp_path):
    with pytest.raises(
        InputError, match=f"mlflow {uri} is a folder, which MLflow keeps no runs in; give sqlite:///FILE"
    ):
        track(tmp_path, uri, {}, [], tmp_path / "report.html")


def test_mlflow_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="MLflow is not installed; pip install mlflow"):
        track(tmp_path, "sqlite:///runs.db", {}, [], tmp_path / "report.html")
