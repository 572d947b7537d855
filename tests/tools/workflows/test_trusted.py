"""Configs and scripts of a bundle from elsewhere run only when they are the packaged ones, or trusted by name."""

import inspect
import shutil

import pytest

from tools.__main__ import COMMANDS, command_function
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


def test_every_command_that_runs_a_bundle_by_folder_asks_for_trust():
    """The others run the bundles of this repository, by name."""
    by_folder, by_name = set(), set()
    for command in COMMANDS:
        parameters = inspect.signature(command_function(command)).parameters
        by_folder |= {command} if "bundle_root" in parameters else set()
        by_name |= {command} if "bundle" in parameters else set()
        assert ("bundle_root" in parameters) == ("trust" in parameters), command
    assert by_folder == {"triton"} and by_name == {"federated", "package", "weights"}


@pytest.mark.parametrize("bundle", ["../elsewhere", "/tmp/elsewhere", "lung_tissue_seg/../../elsewhere"])
def test_a_bundle_that_is_named_is_no_folder_from_elsewhere(bundle, tmp_path):
    (tmp_path / "ct").mkdir()
    given = {"output": tmp_path / "out"}
    for call in (
        lambda: command_function("package")(bundle=bundle, **given),
        lambda: command_function("weights")(bundle=bundle, ct=tmp_path / "ct", **given),
    ):
        with pytest.raises(InputError, match="bundle"):
            call()
    assert not (tmp_path / "out").exists()
