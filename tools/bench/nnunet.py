"""nnU-Net v2: our cases in its form, and as a reference its work in the environment in which it is installed."""

import shutil
import subprocess
from pathlib import Path

from tools.bench import nnunet_worker
from tools.bench.nnunet_worker import DATASET
from tools.data.datalist import split
from tools.data.nnunet import case_numbers, write_dataset
from tools.io.files import InputError, RunError, read_json, write_json
from tools.workflows.run import clean_environment


def run_job(python: Path, directory: Path, job: dict) -> None:
    """Do one of the jobs of ``nnunet_worker``; its labels come to lie in ``labels``.

    Raises:
        RunError: if it fails.
    """
    write_json(directory / "job.json", job | {"directory": str(directory)})
    command = [python, str(Path(nnunet_worker.__file__)), str(directory / "job.json")]
    with open(directory / "run.log", "w") as log:
        failed = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=clean_environment()).returncode
    if failed:
        from tools.workflows.run import first_error  # brings MONAI

        cause = first_error((directory / "run.log").read_text(errors="replace"))
        raise RunError(f"nnU-Net failed: {cause}; its log is {directory / 'run.log'}")


def check(python: Path) -> None:
    """Raise InputError unless an interpreter can import nnunetv2."""
    try:
        subprocess.run([python, "-c", "import nnunetv2"], check=True, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"nnunet {python} cannot be started ({error}); name the Python in which nnunetv2 is") from None
    except subprocess.CalledProcessError as error:
        cause = (error.stderr.splitlines() or [""])[-1]
        raise InputError(f"{python} cannot import nnunetv2 ({cause}); pip install nnunetv2==2.8.1 there") from None


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
