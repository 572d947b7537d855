"""The Model Zoo: packaged bundles pass its checks and tests, and MONAI lists, downloads and loads them."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import trustme
from monai.bundle import load

from tests.integrations.consumers import ROOT, run
from tests.tools.fakes.services import Hub, Proxy, running
from tools.serving.archive import unpack
from tools.serving.package import package
from tools.serving.publish import to_hugging_face

pytestmark = pytest.mark.zoo

SCHEMA = ROOT.parent / "shared/meta_schema_20240725.json"
NAMES = ("lung_tissue_seg", "difflung_synthesis")
LOAD = """
import sys
from monai.bundle import load
name, folder, kind = sys.argv[1:]
sys.path.insert(0, f"{folder}/{name}")  # where scripts are, for a bundle that has a network of its own
network = load(name, bundle_dir=folder, workflow_type=kind, device="cpu")
import torch
weights, loaded = torch.load(f"{folder}/{name}/models/model.pt", weights_only=True), network.state_dict()
assert weights.keys() == loaded.keys() and all(torch.equal(weights[key], loaded[key]) for key in weights)
print("loaded", type(network).__name__)
"""
FROM_GITHUB = """
import sys
from monai.bundle import download, get_all_bundles_list, get_bundle_info
name, stem, folder = sys.argv[1:]
version = stem.rsplit("_v", 1)[1]
assert get_all_bundles_list(repo="owner/name", tag="main") == [(name, version)]
info = get_bundle_info(name, repo="owner/name", tag="main")
download(name, version, folder, source="github", repo=f"owner/name/{stem}")
print("listed", info["name"], "at", info["browser_download_url"])
"""


@pytest.fixture(scope="module")
def packages(segmenter, synthesizer, tmp_path_factory) -> dict[str, Path]:
    """Both bundles packaged with every export that needs no program of its own."""
    folder, made = tmp_path_factory.mktemp("packages"), {}
    for root in (segmenter, synthesizer):
        made[root.name] = folder / root.name
        targets = "zoo,torchscript,onnx,triton" + ",deploy" * (root.name == NAMES[0])
        package(root.name, made[root.name], root / "models/model.pt", targets, repository="owner/name")
    return made


@pytest.fixture(scope="module", params=NAMES)
def output(request, packages) -> Path:
    """What package wrote for one bundle."""
    return packages[request.param]


@pytest.fixture(scope="module")
def root(output, tmp_path_factory) -> Path:
    """Its zip, unpacked somewhere else after its checksum was compared."""
    info = json.loads((output / "model_info.json").read_text())
    archive = next(output.glob("*.zip"))
    return unpack(archive, tmp_path_factory.mktemp("unpacked") / "bundles", info[archive.stem]["checksum"])


def test_package_says_what_was_run(output):
    card = json.loads((output / "package.json").read_text())
    steps = {step["name"] for step in card["steps"]}
    assert {step["result"] for step in card["steps"]} == {"ok"}
    assert steps >= {"train", "evaluate", "inference", "verify_net_in_out", "triton"}
    own = {"inference_torchscript", "inference_onnx", "deploy"} if output.name == "lung_tissue_seg" else {"export"}
    assert steps >= own
    assert not any(str(output.parent) in json.dumps(step) for step in card["steps"])
    assert sorted(path.suffix for path in output.glob(f"{output.name}_v*")) == [".onnx", ".ts", ".zip"]
    assert len(list(output.glob("triton/*/1/model.*"))) == 2
    assert (output / "deploy/__main__.py").is_file() == (output.name == "lung_tissue_seg")


def test_metadata_is_what_the_schema_of_the_zoo_asks_for(root, tmp_path):
    if not SCHEMA.is_file():
        pytest.skip(f"{SCHEMA} is not there, and the tests use no network")
    shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    words = ["verify_metadata", "--meta_file", root / "configs/metadata.json", "--filepath", tmp_path / "schema.json"]
    run(sys.executable, "-m", "monai.bundle", *words, cwd=tmp_path)
    broken = json.loads((root / "configs/metadata.json").read_text())
    del broken["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    words[2] = tmp_path / "metadata.json"
    done = run(sys.executable, "-m", "monai.bundle", *words, cwd=tmp_path, check=False)
    assert done.returncode != 0 and "'task' is a required property" in done.stderr


@pytest.mark.parametrize("kind", ["", "_dist"])
def test_unit_tests_of_the_zoo_pass_beside_the_zip(output, root, kind):
    name = f"test_{output.name}{kind}"
    folder = output / "unit_tests"
    variables = {"BUNDLE_ROOT": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = run(sys.executable, "-m", "unittest", name, cwd=folder, **variables)
    assert "Ran 1 test" in done.stderr and "OK" in done.stderr


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_monai_loads_the_network_with_its_weights(root, tmp_path, kind):
    done = run(sys.executable, "-c", LOAD, root.name, root.parent, kind, cwd=tmp_path)
    assert f"loaded {'UNet' if root.name == 'lung_tissue_seg' else 'TissueDenoiser'}" in done.stdout


def test_monai_gives_the_weights_alone_for_a_workflow_without_a_config_of_its_name(root):
    """``infer`` and ``eval`` are kinds of workflow for MONAI, but load opens <workflow_type>.json only."""
    with pytest.warns(UserWarning, match="Cannot find the config file: .*infer.json, return state dict instead"):
        weights = load(root.name, bundle_dir=root.parent, workflow_type="infer", device="cpu")
    assert isinstance(weights, dict)


def test_monai_lists_the_release_and_downloads_it(output, tmp_path):
    """MONAI asks GitHub; a proxy on this machine answers for it, with the zip where a release has it."""
    archive = next(output.glob("*.zip"))
    address = json.loads((output / "model_info.json").read_text())[archive.stem]["source"].removeprefix("https://")
    entries = "raw.githubusercontent.com/owner/name/main/models/model_info.json"
    files = {entries: (output / "model_info.json").read_bytes(), address: archive.read_bytes()}
    with running(Proxy(files, trustme.CA())) as github:
        variables = github.variables(tmp_path)
        done = run(sys.executable, "-c", FROM_GITHUB, output.name, archive.stem, tmp_path, **variables)
    assert done.stdout.splitlines()[-1] == f"listed {archive.stem} at https://{address}"
    assert same_files(tmp_path / output.name, unpack(archive, tmp_path / "whole"))


def test_monai_downloads_what_was_uploaded_to_hugging_face(root, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    with running(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        to_hugging_face(root, "0.4.0", "owner/name", "secret")
        code = "import sys; from monai.bundle import download; name, folder, version = sys.argv[1:]; "
        code += "download(name, version or None, folder, source='huggingface_hub', repo='owner/name')"
        home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        for version in ("0.4.0", ""):  # without one MONAI takes the tag latest_version
            run(sys.executable, "-c", code, root.name, tmp_path / f"v{version}", version, **home)
            found = tmp_path / f"v{version}" / root.name
            shutil.rmtree(found / ".cache")
            assert (found / "README.md").read_text().startswith("---\ntags:\n- monai\n")
            (found / "README.md").unlink()
            assert same_files(found, root)


def same_files(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same files, byte for byte."""
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    ]
    assert len(contents[0]) > 10 and os.fspath(one) != os.fspath(other)
    return contents[0] == contents[1]
