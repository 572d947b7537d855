"""Running a bundle: overrides are checked, the log keeps the output, a failure is told with its cause."""

import io
import sys
import threading
import types
from pathlib import Path

import pytest

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError
from tools.workflows.run import check_overrides, placed, read_bundle, run_bundle


@pytest.mark.parametrize("bundle", ["lung_tissue_seg", "difflung_synthesis"])
def test_known_overrides_pass_and_a_mistyped_one_is_named(bundle):
    check_overrides(bundle, ["train.json"], {"max_epochs": 2, "train::trainer::max_epochs": 2})
    with pytest.raises(InputError, match=f"{bundle}/train.json has no id 'max_epoch' to override"):
        check_overrides(bundle, ["train.json"], {"max_epoch": 2})
    with pytest.raises(InputError, match="no id 'train::trainer::epochs'"):
        check_overrides(bundle, ["train.json"], {"train::trainer::epochs": 2})


def test_mistyped_override_starts_nothing(tmp_path):
    with pytest.raises(InputError, match="no id 'sed'"):
        run_bundle("lung_tissue_seg", ["train.json"], {"sed": 1}, tmp_path / "run.log")
    assert not (tmp_path / "run.log").exists()


def test_runs_started_in_a_place_have_its_gpu_and_others_none(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []

    def start(command, env, **_):
        seen.append((env.get("CUDA_VISIBLE_DEVICES"), env.get("OMP_NUM_THREADS")))
        return types.SimpleNamespace(stderr=io.BytesIO(), wait=lambda: 0)

    monkeypatch.setattr("tools.workflows.run.subprocess.Popen", start)

    def make(variables=None):
        run_bundle("lung_tissue_seg", ["train.json"], {}, tmp_path / "run.log", variables)

    with placed({"CUDA_VISIBLE_DEVICES": "1"}):
        make({"OMP_NUM_THREADS": "3"})
        elsewhere = threading.Thread(target=make, args=({"OMP_NUM_THREADS": "4"},))
        elsewhere.start()
        elsewhere.join()
    make({"OMP_NUM_THREADS": "5"})
    assert seen == [("1", "3"), (None, "4"), (None, "5")]


@pytest.mark.slow
def test_failed_run_names_its_cause_and_its_log(tmp_path):
    overrides = {"dataset_dir": str(tmp_path / "nowhere"), "device": "cpu", "model_dir": str(tmp_path)}
    with pytest.raises(
        RunError, match=r"train.json failed \(exit 1\): ValueError: Data list file .*nowhere/datalist.json"
    ):
        run_bundle("lung_tissue_seg", ["train.json"], overrides, tmp_path / "run.log")
    assert "nowhere/datalist.json" in (tmp_path / "run.log").read_text()


def test_both_bundles_build_their_components_in_one_process(monkeypatch):
    """Both call their scripts ``scripts``, and another package of that name may be loaded already."""
    monkeypatch.setitem(sys.modules, "scripts", types.SimpleNamespace(__file__="/elsewhere/scripts/__init__.py"))
    for bundle, network, inferer in (
        ("difflung_synthesis", "TissueDenoiser", "PaintInferer"), ("lung_tissue_seg", "UNet", "LungInferer"),
    ):  # fmt: skip
        parser = read_bundle(bundle, "inference.json")
        parser["device"] = "cpu"
        assert type(parser.get_parsed_content("network_def")).__name__ == network
        built = type(parser.get_parsed_content("inferer"))
        assert built.__name__ == inferer
        assert Path(sys.modules[built.__module__].__file__).is_relative_to(BUNDLES / bundle / "scripts")
