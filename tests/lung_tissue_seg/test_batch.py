"""A batch goes on behind a bad case, says what it did, and ends in one sentence."""

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.dicom import write_series
from tests.lung_tissue_seg.bundle import BUNDLE, CONFIGS, load, run, workflow, write_cohort
from tests.tools.fakes.chest import AFFINE, chest, lungs, save

cases, batch, volumes = load("cases"), load("batch"), load("volumes")
SMALL = {"network_channels": [4, 4, 4, 4, 4], "window_size": [64, 64], "find_lung": False, "device": "cpu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random weights of a small segmenter."""
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update(SMALL)
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    return folder


def label(images, output, models, **settings):
    """Label a folder in this process."""
    flow = workflow("inference", "infer", dataset_dir=str(images), output_dir=str(output), model_dir=str(models),
                    **SMALL, **settings)  # fmt: skip
    flow.initialize()
    flow.run()


def six(folder):
    """Write a CT in every form that is at hand, and files of forms whose readers are not."""
    save(chest(lungs()), folder / "a.nii.gz")
    shutil.copy(folder / "a.nii.gz", folder / "b.NII.GZ")
    write_series(folder / "patient/study/4.0-lung", chest(lungs()), AFFINE)
    (folder / "c.nrrd").write_bytes(b"NRRD0004")
    (folder / "d.mha").write_bytes(b"ObjectType = Image")
    (folder / "e.mhd").write_bytes(b"ObjectType = Image")
    (folder / "e.zraw").write_bytes(b"its voxels")
    (folder / ".hidden.nii.gz").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing")
    (folder / "scan.ima").write_bytes(b"something else")


def test_every_readable_form_is_labelled_and_the_others_are_named(tmp_path, models, capsys):
    six(tmp_path / "in")
    label(tmp_path / "in", tmp_path / "out", models)
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"a_tissues.nii.gz", "b_tissues.nii.gz", "patient_study_4.0-lung_tissues.nii.gz"}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == (
        "labelled 3, passed over 4: c.nrrd (needs the package pynrrd); d.mha (needs the package itk); "
        "e.mhd (needs the package itk); scan.ima (neither a volume nor DICOM)"
    )


@pytest.mark.parametrize(
    "names", [("a.nii", "a.nii.gz"), ("A.NII.GZ", "a.nii"), ("M\u00fcller.nii.gz", "Mu\u0308ller.nii.gz")]
)
def test_twins_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"not opened")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("one file on this disk")
    with pytest.raises(ValueError, match=r"holds both .* and .*, which are one case, .*; remove one"):
        cases.find_cts(str(tmp_path))


def test_an_archive_is_not_passed_over_in_silence(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "patient.ZIP").write_bytes(b"PK")
    assert cases.passed_over(str(tmp_path)) == {"patient.ZIP": "an archive; unpack it"}


def five(folder):
    """Write five CTs, of which three are cut short or no HU."""
    for name in "abcde":
        save(chest(lungs()), folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:200])
    content = (folder / "c.nii.gz").read_bytes()
    (folder / "c.nii.gz").write_bytes(content[: len(content) // 2])
    save(chest(lungs()) + 1024, folder / "d.nii.gz")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_cases_do_not_cost_the_others(tmp_path, models, capsys, workers):
    five(tmp_path / "in")
    with pytest.raises(Exception) as caught:
        label(tmp_path / "in", tmp_path / "out", models, num_workers=workers)
    sentence = batch.sentence_of(caught.value) or sys.modules["scripts.batch"].sentence_of(caught.value)
    lines = sentence.splitlines()
    assert lines[0] == "3 of 5 cases could not be labelled:" and len(lines) == 4
    for line, name, told in zip(
        lines[1:], "bcd", ("cannot be read as NIfTI, it may be", "may be truncated: Compressed file", "cannot be HU")
    ):
        assert f"{tmp_path}/in/{name}.nii.gz" in line and told in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_tissues.nii.gz", "e_tissues.nii.gz"]
    assert capsys.readouterr().out.strip().splitlines()[-1] == "labelled 2, failed 3"


def test_results_among_the_cts_are_refused(tmp_path, models):
    save(chest(lungs()), tmp_path / "a.nii.gz")
    with pytest.raises(Exception) as caught:
        label(tmp_path, tmp_path, models)
    assert "a.nii.gz; name a folder of its own for results" in str(caught.value.__cause__ or caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_foreign_errors_keep_their_traceback():
    def wrong():
        return {}["key"]

    with pytest.raises(KeyError) as caught:
        wrong()
    assert batch.sentence_of(caught.value) is None and batch.cause_of(caught.value) == "'key'"


@pytest.mark.slow
def test_monai_bundle_run_ends_with_one_sentence_and_without_progress_bars(tmp_path, models):
    five(tmp_path / "in")
    places = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "model_dir": str(models)}
    done = run(["run"], ["inference"], tmp_path, check=False, **places, **SMALL)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("Error: 3 of 5 cases could not be labelled:") == 1 and "\r" not in done.stderr
    done = run(["run"], ["inference"], tmp_path, check=False, **places | {"dataset_dir": str(tmp_path / "no")}, **SMALL)
    assert done.returncode == 1 and done.stderr.strip().endswith(f"Error: the folder {tmp_path}/no does not exist")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_a_ct_with_a_nan_ends_with_its_name_and_no_weights(tmp_path, workers):
    images = write_cohort(tmp_path / "cohort")
    image = nib.load(images[2])
    hu = np.asarray(image.dataobj, np.float32).copy()
    hu[2, 2, 2] = np.nan
    nib.save(nib.Nifti1Image(hu, image.affine), images[2])
    settings = SMALL | {"patch_size": 32, "window_size": [32, 32], "max_epochs": 1, "epoch_length": 2}
    settings |= {"num_workers": workers, "cache_rate": 1 - workers}
    places = {"dataset_dir": str(tmp_path / "cohort"), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path)}
    done = run(["run", "training"], ["train"], tmp_path, check=False, **places, **settings)
    told = f"Error: {images[2]} holds 1 NaN or infinite voxels; replace them, by -1024 outside the scan"
    assert done.returncode == 1 and told in done.stderr.splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "m/model.pt").exists()


def test_a_gzip_bomb_and_a_shape_of_terabytes_are_refused_by_their_headers(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 1000))
    header.set_data_dtype(np.float64)
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(100_000))
    with pytest.raises(ValueError, match="may be truncated: its header tells of 8000000000 bytes, the file has"):
        volumes.check_file(path)


@pytest.mark.slow
def test_the_sentence_survives_another_process(tmp_path):
    """Torch's loader hands on an error of a worker as text."""
    script = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts import batch, volumes\n"
        "from torch.utils.data import DataLoader\n"
        "class Items(list):\n    def __getitem__(self, index): volumes.check_file('/nowhere.nii')\n"
        "if __name__ == '__main__':\n"
        "    batch.prepare_process()\n    list(DataLoader(Items([1, 2]), num_workers=1))\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.strip() == "Error: /nowhere.nii does not exist"


def test_ctrl_c_a_full_disk_a_dead_worker_and_a_dead_rank_are_told_in_a_sentence():
    def caught(error, cause=None):
        try:
            try:
                raise error from cause
            except Exception as inner:
                raise RuntimeError("Failed to evaluate ConfigExpression") from inner
        except BaseException as whole:
            return batch.sentence_of(whole)

    assert caught(KeyboardInterrupt()).startswith("interrupted; a training goes on")
    assert caught(OSError(28, "No space left on device")) == "a result cannot be written: No space left on device"
    assert caught(OSError(28, "No space left on device", "m.csv")) == "m.csv: No space left on device"
    for text in ("(pid 12) is killed by signal: Killed. ", "(pid(s) 12, 13) exited unexpectedly"):
        assert caught(RuntimeError(f"DataLoader worker {text}"), KeyError()).startswith(
            "a process that loads cases was"
        )
    gloo = "[/pytorch/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer. This is typ"
    told = "another process of this run has ended (Read error [127.0.0.1]:1: Connection reset by peer); a training"
    assert caught(RuntimeError(gloo)).startswith(told)
    assert "has ended (NCCL aborted)" in caught(type("DistBackendError", (RuntimeError,), {})("NCCL aborted"))
    assert caught(OSError("no number, so nobody knows")) is None
    assert caught(RuntimeError("something else")) is None


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone can")
def test_processes_end_with_the_torchrun_that_was_killed(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(
        f"import os, pathlib, sys, time\nsys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts.batch import prepare_process\nprepare_process()\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid' + os.environ['RANK']).write_text(str(os.getpid()))\ntime.sleep(300)\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    launcher = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [tmp_path / "pid0", tmp_path / "pid1"]
    try:
        wait_until(lambda: all(path.is_file() and path.read_text() for path in started), 120)
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not any(Path(f"/proc/{path.read_text()}").exists() for path in started), 20)


def wait_until(true, seconds):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)
