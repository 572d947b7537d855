"""Running a bundle: overrides are checked, the log keeps the output, a failure is told with its cause."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError
from tools.workflows import run as run_module
from tools.workflows.run import check_overrides, read_bundle, run_bundle


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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_bundles_process_ends_with_the_one_that_was_killed(monkeypatch, tmp_path):
    """A module that waits stands in for monai.bundle; its parent is killed, as a system short of memory would."""
    (tmp_path / "waits.py").write_text("import time; print(__import__('os').getpid(), flush=True); time.sleep(60)")
    program = (
        "import subprocess, sys; from tools.workflows import run; "
        "run.BOUND = run.BOUND.replace('monai.bundle', 'waits'); "
        f"sys.path.insert(0, {str(tmp_path)!r}); subprocess.run(run.bound_command([]), cwd={str(tmp_path)!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=BUNDLES.parent)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child lives on")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_worker_of_a_pool_asks_to_end_with_its_parent():
    asked = "(lambda c, n: (c.CDLL(None).prctl(2, c.byref(n)), n.value))(ctypes, ctypes.c_int())"
    asked = asked.replace("ctypes", "__import__('ctypes')")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, run_module.end_with_parent, (os.getpid(),)) as pool:
        assert pool.submit(eval, asked).result() == (0, signal.SIGKILL)
    assert eval(asked) == (0, 0)  # not this one
    with ProcessPoolExecutor(1, spawn, run_module.end_with_parent, (1,)) as pool:  # its parent died meanwhile
        with pytest.raises(BrokenProcessPool):
            pool.submit(abs, 1).result()


def test_runs_that_other_threads_wait_for_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "check_overrides", lambda *given: None)
    monkeypatch.setattr(
        run_module, "bound_command", lambda words: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_bundle, "lung_tissue_seg", ["train.json"], {}, tmp_path / "run.log")
        while not run_module.STARTED:
            time.sleep(0.01)
        run_module.end_runs()
        with pytest.raises(RunError, match="failed"):
            future.result(20)
    assert not run_module.STARTED
