"""Triton's configuration from a bundle's metadata, and what cannot be exported."""

import importlib.util
import json
import shutil

import pytest

from tools.io.files import InputError, RunError
from tools.serving.triton import KINDS, configuration, write_repository
from tools.workflows.run import BUNDLES


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose weights are none."""
    root = tmp_path / "lung_tissue_seg"
    (root / "models").mkdir(parents=True)
    shutil.copytree(BUNDLES / root.name / "configs", root / "configs")
    (root / "models/model.pt").write_bytes(b"no weights")
    return root


def test_configuration_holds_the_tensors_of_the_metadata():
    metadata = json.loads((BUNDLES / "difflung_synthesis/configs/metadata.json").read_text())
    text = configuration("paint", "torchscript", metadata)
    assert 'name: "paint"\nbackend: "pytorch"\nmax_batch_size: 16\n' in text
    assert '{ name: "image", data_type: TYPE_FP32, dims: [10, -1, -1] }' in text
    assert '{ name: "timesteps", data_type: TYPE_FP32, dims: [1], reshape: { shape: [ ] } }' in text
    assert '{ name: "attributes", data_type: TYPE_FP32, dims: [18] }' in text
    assert '{ name: "pred", data_type: TYPE_FP32, dims: [1, -1, -1] }' in text
    assert "# Sides of an image: 8*n x 8*n." in text


def test_tensor_that_is_not_float32_is_refused():
    metadata = json.loads((BUNDLES / "lung_tissue_seg/configs/metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["dtype"] = "uint8"
    with pytest.raises(
        InputError, match="tensor pred of metadata.json is uint8, but the exported networks take float32"
    ):
        configuration("segment", "onnx", metadata)


def test_bundle_without_weights_is_refused(bundle, tmp_path):
    (bundle / "models/model.pt").unlink()
    with pytest.raises(InputError, match=r"lung_tissue_seg has no weights in models/model.pt; train it first"):
        write_repository(bundle, tmp_path / "repository")


@pytest.mark.parametrize("kind", KINDS)
def test_model_that_the_repository_holds_is_refused(kind, bundle, tmp_path):
    folder = tmp_path / f"repository/lung_tissue_seg_{kind}"
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").touch()
    with pytest.raises(InputError, match=rf"repository/lung_tissue_seg_{kind} is not empty"):
        write_repository(bundle, tmp_path / "repository")


def test_missing_package_is_named(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="onnx is not installed; ONNX export needs pip install -r requirements-dev.txt"
    ):
        write_repository(bundle, tmp_path / "repository")


@pytest.mark.slow
def test_failed_export_leaves_no_repository_and_says_why(bundle, tmp_path):
    with pytest.raises(RunError, match=r"monai.bundle ckpt_export of .*lung_tissue_seg failed \(exit 1\): .*Error"):
        write_repository(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
