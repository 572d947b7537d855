"""nnU-Net v2 as a reference: our cases in its form, and its work in the environment in which it is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools import nnunet_peer
from tools.arms import split
from tools.bundle import first_error
from tools.files import InputError, RunError, read_json, write_json
from tools.nnunet_peer import DATASET
from tools.scheme import unlabelled_value


def check(python: Path) -> None:
    """Raise InputError unless an interpreter can import nnunetv2."""
    try:
        subprocess.run([python, "-c", "import nnunetv2"], check=True, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"nnunet {python} cannot be started ({error}); name the Python in which nnunetv2 is") from None
    except subprocess.CalledProcessError as error:
        cause = (error.stderr.splitlines() or [""])[-1]
        raise InputError(f"{python} cannot import nnunetv2 ({cause}); pip install nnunetv2==2.8.1 there") from None


def case_numbers(real: dict) -> dict[str, str]:
    """Return image path to the name of the case in nnU-Net's dataset."""
    return {item["image"]: f"{number:04d}" for number, item in enumerate(real["training"])}


def prepare(folder: Path, python: Path, real: dict, folds: list[int], voxels: int | None) -> dict:
    """Write the cases as nnU-Net wants them, let it plan and preprocess, give it our folds; return its 2D plan."""
    done = folder / "nnunet_plan.json"
    if done.is_file():
        return read_json(done)
    for name in ("raw", "preprocessed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    numbers = case_numbers(real)
    write_dataset(folder / "raw" / DATASET, real)
    run_job(python, folder / "prepare", {"task": "prepare", "folder": str(folder), "voxels_per_step": voxels})
    splits = [
        dict(zip(("train", "val"), ([numbers[item["image"]] for item in part] for part in split(real, fold))))
        for fold in folds
    ]
    write_json(folder / "preprocessed" / DATASET / "splits_final.json", splits)
    write_json(done, read_json(folder / "prepare/done.json"))
    return read_json(done)


def write_dataset(raw: Path, real: dict) -> None:
    """Write the cases as nnU-Net's raw dataset; unlabelled voxels get the value that it ignores."""
    labels, numbers = dict(real["labels"]), case_numbers(real)
    ignore, unlabelled = max(labels.values()) + 1, unlabelled_value()
    for item in tqdm(real["training"], desc="nnU-Net's dataset", unit="case"):
        image, label = nib.load(item["image"]), nib.load(item["label"])
        values = np.asarray(label.dataobj).astype(np.uint8)
        if (values == unlabelled).any():
            labels["ignore"] = ignore
            values[values == unlabelled] = ignore
        name, hu = numbers[item["image"]], np.asarray(image.dataobj)
        for place, suffix, array in (("imagesTr", "_0000", hu), ("labelsTr", "", values)):
            (raw / place).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, image.affine), raw / place / f"{name}{suffix}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(numbers)}
    write_json(raw / "dataset.json", description | {"file_ending": ".nii.gz"})


def run_job(python: Path, directory: Path, job: dict) -> None:
    """Do one of the jobs of ``nnunet_peer``; its labels come to lie in ``labels``.

    Raises:
        RunError: if it fails.
    """
    write_json(directory / "job.json", job | {"directory": str(directory)})
    command = [python, str(Path(nnunet_peer.__file__)), str(directory / "job.json")]
    with open(directory / "run.log", "w") as log:
        failed = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment()).returncode
    if failed:
        cause = first_error((directory / "run.log").read_text(errors="replace"))
        raise RunError(f"nnU-Net failed: {cause}; its log is {directory / 'run.log'}")


def environment() -> dict[str, str]:
    """Return the environment without this project's packages, and with threads that sleep while they wait."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept
