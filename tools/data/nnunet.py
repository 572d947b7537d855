"""A datalist as a raw dataset of nnU-Net v2."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.data.datalist import read_datalist, split
from tools.io.files import InputError, check_new_directory, new_directory, write_json
from tools.io.volume import SYNTHETIC_MARK, check_same_geometry, save_nifti, turned
from tools.tissues import unlabelled_value


def export_nnunet(datalist: Path, output: Path) -> None:
    """Write a datalist as a raw dataset of nnU-Net v2: imagesTr, labelsTr, dataset.json and splits_final.json.

    Voxels without a label get nnU-Net's ignore label. Synthetic cases are only ever trained on: their names begin with
    ``synthetic_``, ``synthetic`` in dataset.json lists them, and splits_final.json has them in the training part of the
    fold alone for which they were painted. Elsewhere their patients are tested on.

    Args:
        datalist: The datalist.json of `dataset` or of `augment`.
        output: Folder to create, named as nnU-Net wants it, Dataset001_lung for one.

    Raises:
        InputError: if the datalist cannot be used, two cases would have one name, or it is not known which patients
            synthetic cases were made of.
    """
    output = Path(output)
    if not re.fullmatch(r"Dataset\d{3}_\w+", output.name):
        raise InputError(f"output {output} must be named as nnU-Net wants it, nnunet_raw/Dataset001_lung for one")
    check_new_directory(output)
    content = read_datalist(datalist)
    names: dict[str, Path] = {}  # case in nnU-Net's dataset to image
    synthetic: list[str] = []
    for case in content["training"]:
        if not case.synthetic and description_of(nib.load(case.image)).startswith(SYNTHETIC_MARK):
            raise InputError(f"{case.image} says {SYNTHETIC_MARK} in its header, but its item in {datalist} does not")
        name = f"synthetic_{case.name}" if case.synthetic else case.name
        if case.synthetic:
            synthetic.append(name)
        if name in names:
            raise InputError(f"{datalist}: {names[name]} and {case.image} would both be named {name}")
        names[name] = case.image
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


def description_of(image: nib.Nifti1Image) -> str:
    """Return the text in a NIfTI header."""
    return image.header["descrip"].item().decode(errors="replace")


def splits(content: dict, names: dict[Path, str], fitted_fold: int | None) -> list[dict[str, list[str]]]:
    """Return nnU-Net's splits, one per fold: ``train`` and ``val`` with names of cases (``names`` is image to case).

    Only in the ``fitted_fold`` are synthetic cases trained on.
    """
    found = []
    for fold in range(max(case.fold for case in content["training"]) + 1):
        train, val = split(content, fold)
        train = [case for case in train if not case.synthetic or fold == fitted_fold]
        found.append({key: [names[case.image] for case in part] for key, part in (("train", train), ("val", val))})
    return found


def case_numbers(real: dict) -> dict[Path, str]:
    """Return image path to the name of the case in nnU-Net's dataset."""
    return {case.image: f"{number:04d}" for number, case in enumerate(real["training"])}


def write_dataset(raw: Path, content: dict, names: dict[Path, str], **about: object) -> None:
    """Write the cases of a datalist as nnU-Net's raw dataset; unlabelled voxels get the value that it ignores.

    ``names`` is image to case; ``about`` holds more keys for dataset.json.
    """
    labels = dict(content["labels"])
    ignore, unlabelled = max(labels.values()) + 1, unlabelled_value()
    for case in tqdm(content["training"], desc="nnU-Net's dataset", unit="case", disable=None):
        image = nib.load(case.image)
        label = turned(nib.load(case.label), image)
        check_same_geometry(image, label, case.image, case.label)
        values = np.asarray(label.dataobj).round().astype(np.uint8)
        if (values == unlabelled).any():
            labels["ignore"] = ignore
            values[values == unlabelled] = ignore
        name, hu, mark = names[case.image], np.asarray(image.dataobj), description_of(image)
        save_nifti(hu, image, raw / "imagesTr" / f"{name}_0000.nii.gz", mark)
        save_nifti(values, image, raw / "labelsTr" / f"{name}.nii.gz", mark)
    needed = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", needed | about)
