"""The folder of the MONAI Deploy app: what it holds and what it is refused for; running it is tests/integrations."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError
from tools.serving import deploy
from tools.serving.deploy import write_app

SEGMENTER = BUNDLES / "lung_tissue_seg"
PINNED = Path(__file__).parents[2] / "integrations/requirements-deploy.txt"


def bundle(folder, weights=True):
    """A copy of the segmenter with random weights."""
    root = folder / "lung_tissue_seg"
    shutil.copytree(SEGMENTER, root, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.pt"))
    if weights:
        parser = ConfigParser()  # its network is MONAI's, so no scripts of the bundle are loaded
        parser.read_config(str(SEGMENTER / "configs/inference.json"))
        network = parser.get_parsed_content("network_def")
        torch.save(network.state_dict(), root / "models/model.pt")
    return root


@pytest.mark.slow
def test_the_folder_holds_all_that_the_app_imports(tmp_path):
    root = bundle(tmp_path)
    write_app(root, tmp_path / "app")
    held = {path.name for path in (tmp_path / "app").iterdir()}
    assert held == {"__main__.py", "extents.py", "dicom_seg.py"} | {
        "scripts",
        "models",
        "requirements.txt",
        "app.yaml",
        "LICENSE",
    }
    assert (tmp_path / "app/scripts/lungs.py").read_text() == (root / "scripts/lungs.py").read_text()
    version = json.loads((SEGMENTER / "configs/metadata.json").read_text())["version"]
    assert f'version: "{version}"' in (tmp_path / "app/app.yaml").read_text()
    extra = {"inference.json": ""}
    torch.jit.load(tmp_path / "app/models/model.ts", _extra_files=extra)
    assert b"scripts.lungs.LungInferer" in extra["inference.json"]


def test_the_app_names_what_the_tests_install():
    assert PINNED.read_text() == (deploy.HERE / "deploy_requirements.txt").read_text()


def test_a_bundle_without_weights_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"models/model.pt does not exist; train the bundle first"):
        write_app(bundle(tmp_path, weights=False), tmp_path / "app")
    with pytest.raises(InputError, match=r"difflung_synthesis has no scripts/lungs.py; the app is made of the bundle"):
        write_app(BUNDLES / "difflung_synthesis", tmp_path / "app")
    assert not (tmp_path / "app").exists()


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    root = bundle(tmp_path, weights=False)
    torch.save({"weight": torch.zeros(1)}, root / "models/model.pt")
    with pytest.raises(RunError, match=r"the export of .*lung_tissue_seg as TorchScript failed: "):
        write_app(root, tmp_path / "app")
    assert not (tmp_path / "app").exists()
