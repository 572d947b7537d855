"""`package`: wrong calls, bundles that cannot be built, and what a run from the unpacked zip must not do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

import tools.serving.package as module
from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError
from tools.serving.package import package
from tools.serving.unpacked import Proof, draw_patients
from tools.serving.workflow_check import weight_problems, workflow_problems

SEGMENTER = "lung_tissue_seg"


@pytest.fixture
def weights(tmp_path) -> Path:
    """Weights of a segmenter that has learned nothing."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / SEGMENTER / "configs/inference.json"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def root(tmp_path, weights) -> Path:
    """The segmenter's bundle with these weights."""
    return module._stage(SEGMENTER, weights, None, tmp_path / "staged" / SEGMENTER)


def refused(text: str, tmp_path: Path, **arguments: object) -> None:
    """Call package and expect an InputError; nothing may have been written."""
    with pytest.raises(InputError, match=text):
        package(**{"bundle": SEGMENTER, "output": tmp_path / "out"} | arguments)
    assert not (tmp_path / "out").exists()


def test_wrong_calls_are_refused_before_anything_is_written(tmp_path, weights, monkeypatch):
    refused("there is no bundle 'lung'; there are difflung_synthesis, lung_tissue_seg", tmp_path, bundle="lung")
    refused("there is no bundle '../bundles'", tmp_path, bundle="../bundles")
    refused("targets are of zoo, .*, not 'tensorrt'", tmp_path, targets="zoo,tensorrt")
    refused("targets are of zoo, .*, not ''", tmp_path, targets="")
    refused("target deploy is for lung_tissue_seg", tmp_path, bundle="difflung_synthesis", targets="zoo,deploy")
    refused("weights .*none.pt do not exist; train the bundle, or", tmp_path, weights=tmp_path / "none.pt")
    refused("data_license .*none.txt does not exist", tmp_path, weights=weights, data_license=tmp_path / "none.txt")
    refused("repository is owner/name, not 'name'", tmp_path, repository="name")
    refused("publish huggingface needs --repository", tmp_path, publish="huggingface")
    refused("then gh release create lung_tissue_seg_v.* --repo OWNER/NAME", tmp_path, publish="github")
    monkeypatch.setenv("HF_TOKEN", "secret")
    refused("publish huggingface needs --data_license", tmp_path, publish="huggingface", repository="owner/name")


def test_an_output_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="is not empty; remove it or name another folder"):
        package(SEGMENTER, tmp_path)


@pytest.mark.slow
def test_the_same_command_stays_with_what_it_made_and_another_is_refused(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(module, "_prove", lambda *_: None)
    monkeypatch.setattr(module, "workflow_problems", lambda *_: [])
    output = tmp_path / "out"
    package(SEGMENTER, output, weights)
    (archive,) = output.glob("*.zip")
    made = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.rglob("*")}
    capsys.readouterr()
    package(SEGMENTER, output, weights)
    assert "was made earlier by the same command and stays" in capsys.readouterr().out
    assert made == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.rglob("*")}
    for different in ({"targets": "torchscript"}, {"repository": "owner/name"}, {"weights": None}):
        with pytest.raises(InputError, match="is not empty: it holds another package; remove it or"):
            package(**{"bundle": SEGMENTER, "output": output, "weights": weights} | different)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match="holds a package whose zip is missing or damaged; remove it"):
        package(SEGMENTER, output, weights)


def test_weights_and_licence_of_the_data_are_what_is_shipped(tmp_path, weights):
    (tmp_path / "licence.txt").write_text("CC BY 4.0")
    root = module._stage(SEGMENTER, weights, tmp_path / "licence.txt", tmp_path / "staged")
    assert (root / "models/model.pt").read_bytes() == weights.read_bytes()
    assert (root / "docs/data_license.txt").read_text() == "CC BY 4.0"
    assert not (root / "models/.gitkeep").exists()


@pytest.mark.slow
def test_all_that_is_wrong_is_named_at_once_and_nothing_written(tmp_path, weights, monkeypatch):
    """A mismatched version, a missing id and weights that are not tensors, in one message."""
    shutil.copytree(BUNDLES / SEGMENTER, tmp_path / "bundles" / SEGMENTER)
    monkeypatch.setattr(module, "BUNDLES", tmp_path / "bundles")
    for name, key, value in (("metadata", "numpy_version", "1.0"), ("inference", "inferer", None)):
        path = tmp_path / "bundles" / SEGMENTER / f"configs/{name}.json"
        content = json.loads(path.read_text()) | {key: value}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    torch.save({"epoch": 3}, weights)
    with pytest.raises(InputError) as error:
        package(SEGMENTER, tmp_path / "out", weights)
    for text in (
        "lung_tissue_seg is not fit for release: metadata.json names numpy 1.0, but here it is",
        "inference cannot be built: ",
        "`@inferer` is not defined",
        "models/model.pt is not a plain state dict",
    ):
        assert text in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_id_of_another_name_is_named_and_building_leaves_nothing_behind(tmp_path, root):
    dataset_dir, cases_dir = draw_patients(tmp_path / "drawn", SEGMENTER)
    path = root / "configs/train.json"
    path.write_text(
        path.read_text().replace('"inferer": "@validate::inferer"', '"inferer": "@validate::postprocessing"')
    )
    assert workflow_problems(root, dataset_dir, cases_dir, tmp_path / "built") == [
        "train lacks val_inferer, which consumers read",
        "evaluate lacks val_inferer, which consumers read",
    ]
    assert not list(root.rglob("__pycache__")) and not (root / "eval").exists()


def test_weights_that_do_not_fit_or_do_not_load_are_named(root):
    assert weight_problems(root) == []
    torch.save({"conv.weight": torch.zeros(1)}, root / "models/model.pt")
    (problem,) = weight_problems(root)
    assert "models/model.pt does not fit network_def: Error(s) in loading state_dict for UNet: Missing key" in problem
    torch.save({"epoch": 3}, root / "models/model.pt")
    assert weight_problems(root) == ["models/model.pt is not a plain state dict of tensors"]
    torch.save(torch.nn.Linear(1, 1), root / "models/model.pt")
    for text in ("text", ""):
        assert "models/model.pt does not load with weights_only=True" in weight_problems(root)[0]
        (root / "models/model.pt").write_text(text)


def test_weights_of_a_synthesizer_with_attributes_of_its_own_fit(tmp_path):
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "difflung_synthesis/configs/train.json"))
    parser.update({"attributes": {"age": [20, 90]}, "bundle_root": str(tmp_path)})
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "own.pt")
    staged = module._stage("difflung_synthesis", tmp_path / "own.pt", None, tmp_path / "staged/difflung_synthesis")
    assert weight_problems(staged) == []


def test_a_run_that_changes_the_bundle_is_found(tmp_path, root):
    proof = Proof(root, tmp_path / "work", tmp_path, tmp_path, tmp_path / "log")
    proof.check_untouched()
    (root / "models/training.pt").write_bytes(b"state")
    with pytest.raises(RunError, match="running lung_tissue_seg changed models/training.pt in its own folder"):
        proof.check_untouched()


def test_commands_are_told_without_the_folders_of_one_run(tmp_path, root):
    proof = Proof(root, tmp_path / "work", tmp_path / "data", tmp_path / "cases", tmp_path / "log")
    words = [
        "run",
        "--bundle_root",
        str(root),
        "--dataset_dir",
        f"{tmp_path}/data",
        "--output_dir",
        f"{tmp_path}/work/a",
    ]
    assert proof._readable(words) == (
        "python -m monai.bundle run --bundle_root BUNDLE --dataset_dir DATA --output_dir WORK/a"
    )


@pytest.mark.slow
def test_a_failing_step_ends_the_proof_and_keeps_its_log(tmp_path, root):
    proof = Proof(root, tmp_path / "work", tmp_path, tmp_path, tmp_path / "failed.log")
    files = ["--meta_file", root / "configs/metadata.json", "--config_file", root / "configs/inference.json"]
    wrong = ["verify_net_in_out", "no_network", *files, "--device", "cpu"]
    with pytest.raises(
        RunError,
        match="check of lung_tissue_seg failed: ValueError: By 'no_network', did you mean.*; its log is .*failed.log",
    ):
        proof.call("check", wrong)
    assert "no_network" in (tmp_path / "failed.log").read_text()
    assert proof.steps == []


@pytest.mark.slow
def test_nothing_of_this_repository_is_within_reach_of_a_run(tmp_path, root, monkeypatch):
    """A bundle that leans on tools would run here and nowhere else; the proof must find that."""
    monkeypatch.setenv("PYTHONPATH", str(BUNDLES.parent))
    path = root / "configs/inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"initialize": ["$__import__('tools.tissues')"]}))
    proof = Proof(root, tmp_path / "work", tmp_path, tmp_path, tmp_path / "failed.log")
    with pytest.raises(
        RunError, match="inference of lung_tissue_seg failed: ModuleNotFoundError: No module named 'tools'"
    ):
        proof.infer("inference", [])
