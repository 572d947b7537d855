"""nnU-Net v2: our cases in its form, and as a reference its work in the environment in which it is installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools import nnunet_peer
from tools.arms import read_datalist, split
from tools.files import InputError, RunError, check_new_directory, new_directory, read_json, write_json
from tools.nifti import SYNTHETIC_MARK, case_name, check_same_geometry, save_nifti
from tools.nnunet_peer import DATASET
from tools.scheme import unlabelled_value


def export(datalist: Path, output: Path) -> None:
    """Write a datalist as a raw dataset of nnU-Net v2, with its folds, and with the synthetic cases marked.

    Their names begin with ``synthetic_``, ``synthetic`` in dataset.json lists them, and splits_final.json has them in
    the training part of the fold alone for which they were painted: elsewhere their patients are tested on.

    Args:
        datalist: datalist.json of ``dataset`` or of ``augment``.
        output: folder to create, named as nnU-Net wants it, Dataset001_lung for one.

    Raises:
        InputError: if the datalist cannot be used, two cases would have one name, or it is not known which patients
            synthetic cases were made of.
    """
    output = check_dataset_name(output)
    content = read_datalist(datalist)
    names: dict[str, str] = {}  # case in nnU-Net's dataset to image
    synthetic: list[str] = []
    for item in content["training"]:
        name = case_name(item["image"])
        if is_synthetic(item, datalist):
            name = f"synthetic_{name}"
            synthetic.append(name)
        if name in names:
            raise InputError(f"{datalist}: {names[name]} and {item['image']} would both be named {name}")
        names[name] = item["image"]
    fitted_fold = content.get("held_out_fold")
    if synthetic and fitted_fold is None:
        raise InputError(
            f"{datalist} holds the synthetic case {synthetic[0]}, but no held_out_fold says which patients it was not "
            "made of; give the datalist that augment wrote"
        )
    with new_directory(output) as folder:
        of_image = {image: name for name, image in names.items()}
        about = f"{content.get('description', 'CT in HU with tissue maps')}; research use only"
        write_dataset(folder, content, of_image, description=about, synthetic=synthetic)
        write_json(folder / "splits_final.json", splits(content, of_image, fitted_fold))
    number = int(output.name[len("Dataset") :][:3])
    print(f"wrote {output} ({len(names)} cases, {len(synthetic)} of them synthetic); next, where nnU-Net is installed:")
    print(f"  export nnUNet_raw={output.absolute().parent} nnUNet_preprocessed=… nnUNet_results=…")
    print(f"  nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity && nnUNetv2_train {number} 2d 0")


def check_dataset_name(output: Path) -> Path:
    """Return a folder that can be created, if its name is one of nnU-Net's.

    Raises:
        InputError: if it is not, or the folder holds something.
    """
    output = Path(output)
    if not re.fullmatch(r"Dataset\d{3}_\w+", output.name):
        raise InputError(f"output {output} must be named as nnU-Net wants it, nnunet_raw/{DATASET} for one")
    return check_new_directory(output)


def is_synthetic(item: dict, datalist: Path) -> bool:
    """Return whether a datalist's item is synthetic.

    Raises:
        InputError: if its CT is marked so, but the item is not.
    """
    said = bool(item.get("synthetic"))
    if not said and description_of(nib.load(item["image"])).startswith(SYNTHETIC_MARK):
        raise InputError(f"{item['image']} says {SYNTHETIC_MARK} in its header, but its item in {datalist} does not")
    return said


def description_of(image: nib.Nifti1Image) -> str:
    """Return the text in a NIfTI header."""
    return image.header["descrip"].item().decode(errors="replace")


def splits(content: dict, names: dict[str, str], fitted_fold: int | None) -> list[dict[str, list[str]]]:
    """Return nnU-Net's splits, one per fold: ``train`` and ``val`` with names of cases.

    Args:
        content: of a datalist.
        names: image to case.
        fitted_fold: the only fold in which synthetic cases are trained on.
    """
    found = []
    for fold in range(max(item["fold"] for item in content["training"]) + 1):
        train, val = split(content, fold)
        train = [item for item in train if not item.get("synthetic") or fold == fitted_fold]
        found.append({key: [names[item["image"]] for item in part] for key, part in (("train", train), ("val", val))})
    return found


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
    write_dataset(folder / "raw" / DATASET, real, numbers)
    run_job(python, folder / "prepare", {"task": "prepare", "folder": str(folder), "voxels_per_step": voxels})
    splits = [
        dict(zip(("train", "val"), ([numbers[item["image"]] for item in part] for part in split(real, fold))))
        for fold in folds
    ]
    write_json(folder / "preprocessed" / DATASET / "splits_final.json", splits)
    write_json(done, read_json(folder / "prepare/done.json"))
    return read_json(done)


def write_dataset(raw: Path, content: dict, names: dict[str, str], **about: object) -> None:
    """Write the cases of a datalist as nnU-Net's raw dataset; unlabelled voxels get the value that it ignores.

    Args:
        raw: folder of the dataset.
        content: of the datalist, with absolute paths.
        names: image to case.
        **about: more keys for dataset.json.
    """
    labels = dict(content["labels"])
    ignore, unlabelled = max(labels.values()) + 1, unlabelled_value()
    for item in tqdm(content["training"], desc="nnU-Net's dataset", unit="case"):
        image, label = nib.load(item["image"]), nib.load(item["label"])
        check_same_geometry(image, label, item["image"], item["label"])
        values = np.asarray(label.dataobj).astype(np.uint8)
        if (values == unlabelled).any():
            labels["ignore"] = ignore
            values[values == unlabelled] = ignore
        name, hu, mark = names[item["image"]], np.asarray(image.dataobj), description_of(image)
        save_nifti(hu, image, raw / "imagesTr" / f"{name}_0000.nii.gz", mark)
        save_nifti(values, image, raw / "labelsTr" / f"{name}.nii.gz", mark)
    needed = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", needed | about)


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
        from tools.bundle import first_error  # brings MONAI

        cause = first_error((directory / "run.log").read_text(errors="replace"))
        raise RunError(f"nnU-Net failed: {cause}; its log is {directory / 'run.log'}")


def environment() -> dict[str, str]:
    """Return the environment without this project's packages, and with threads that sleep while they wait."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept
