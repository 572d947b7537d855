"""nnU-Net v2 as a reference: its work in the environment in which it is installed."""

import shutil
from pathlib import Path

from tools.bench import nnunet_worker
from tools.bench.nnunet_worker import DATASET
from tools.data.datalist import split
from tools.data.nnunet import case_numbers, write_dataset
from tools.io.files import read_json, write_json
from tools.workflows.run import check_python, run_worker


def run_job(python: Path, directory: Path, job: dict) -> None:
    """Do one of the jobs of ``nnunet_worker``; its labels come to lie in ``labels``; RunError if it fails."""
    path = directory / "job.json"
    write_json(path, job | {"directory": str(directory)})
    run_worker("nnU-Net", python, Path(nnunet_worker.__file__), path, directory / "run.log")


def check(python: Path) -> None:
    """Raise InputError unless an interpreter can import nnunetv2."""
    check_python("nnunet", python, "nnunetv2", "pip install nnunetv2==2.8.1 there")


def prepare(folder: Path, python: Path, real: dict, folds: list[int], voxels: int | None) -> dict:
    """Write the cases as nnU-Net wants them, let it plan and preprocess, give it our folds; return its 2D plan."""
    done = folder / "nnunet_plan.json"
    if done.is_file():
        return read_json(done)
    for name in ("raw", "preprocessed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    numbers = case_numbers(real)
    write_dataset(folder / "raw" / DATASET, real, numbers)
    run_job(python, folder / "prepare", {"task": "prepare", "folder": str(folder), "voxels_per_step": voxels})
    splits = [
        dict(zip(("train", "val"), ([numbers[case.image] for case in part] for part in split(real, fold))))
        for fold in folds
    ]
    write_json(folder / "preprocessed" / DATASET / "splits_final.json", splits)
    write_json(done, read_json(folder / "prepare/done.json"))
    return read_json(done)
