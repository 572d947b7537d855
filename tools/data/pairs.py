"""CTs and their tissue maps in two folders: paired by name, loaded and checked, with all problems told together."""

from pathlib import Path

import nibabel as nib
import numpy as np

from tools.io.files import InputError
from tools.io.volume import check_same_geometry, list_cts, list_nifti, load_ct, load_labels, turned

PROBLEMS_SHOWN = 20


def pair_files(images: Path, labels: Path, problems: list[str]) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return case to its image and label file, and the cases that lack one; each of those is added to ``problems``.

    Raises:
        InputError: if a folder is missing or empty, or holds one case twice; both folders are reported.
    """
    found, unusable = [], []
    for directory, listed in ((images, list_cts), (labels, list_nifti)):
        try:
            found.append(listed(directory))
        except InputError as error:
            unusable.append(str(error))
    refuse(unusable)
    image_of, label_of = found
    unpaired = sorted(image_of.keys() ^ label_of.keys())
    for case in unpaired:
        if case in image_of:
            problems.append(f"{image_of[case]} has no label {Path(labels) / case}.nii.gz")
        else:
            problems.append(f"{label_of[case]} has no image {Path(images) / case}.nii.gz")
    return {case: (image_of[case], label_of[case]) for case in image_of if case in label_of}, unpaired


def check_case(
    image_path: Path, label_path: Path, scheme: dict[str, int], foreign: dict[int, str] | None, problems: list[str]
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image] | None:
    """Load and check one case.

    Args:
        image_path: CT in HU; a folder is a DICOM series, whose axes are turned as its label's.
        label_path: Tissue map, whose axes are turned as a NIfTI file's.
        scheme: Tissue name to value.
        foreign: Foreign value to tissue name, or None if the map holds the scheme's values.
        problems: Receives what is wrong.

    Returns:
        HU, label values and the image's geometry; None if something is wrong.
    """
    found = len(problems)
    hu = image = size_of = None
    try:
        hu, image = load_ct(image_path)
        size_of = image_path
    except InputError as error:
        problems.append(str(error))
    try:
        tissue, label = load_labels(label_path, scheme, foreign, like_path=size_of)
    except InputError as error:
        problems.append(str(error))
    if len(problems) > found:
        return None
    if image_path.is_dir():  # programs that write the label put the axes in an order of their own
        image = turned(image, label)
        hu = np.asarray(image.dataobj, np.float32)
    label = turned(nib.Nifti1Image(tissue, label.affine), image)
    try:
        check_same_geometry(image, label, image_path, label_path)
    except InputError as error:
        problems.append(str(error))
        return None
    return hu, np.asarray(label.dataobj), image


def refuse(problems: list[str]) -> None:
    """Raise InputError with all problems, at most 20 of them in full, if there are any."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        lines = problems[:PROBLEMS_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        raise InputError("\n  ".join([f"{len(problems)} problems", *lines]))
