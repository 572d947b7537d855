"""Configs and scripts of a bundle from elsewhere run only when they are the packaged ones, or trusted by name."""

import shutil

import pytest

from tools.bundles import BUNDLES
from tools.io.files import InputError
from tools.workflows.trusted import check_trusted, differences


def test_a_changed_bundle_is_run_only_with_trust(tmp_path):
    root = tmp_path / "lung_tissue_seg"
    shutil.copytree(BUNDLES / "lung_tissue_seg", root, ignore=shutil.ignore_patterns("models", "__pycache__"))
    assert differences(root) == [] and differences(BUNDLES / "lung_tissue_seg") == []
    check_trusted(root, False)
    (root / "scripts/lungs.py").write_text("import os", encoding="utf-8")
    (root / "scripts/more.py").write_text("", encoding="utf-8")
    (root / "configs/fine_tune.yaml").unlink()
    told = "differs from the packaged bundle in configs/fine_tune.yaml, scripts/lungs.py, scripts/more.py; "
    with pytest.raises(InputError, match=told):
        check_trusted(root, False)
    check_trusted(root, True)
