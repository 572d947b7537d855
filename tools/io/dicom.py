"""DICOM series as NIfTI images in memory: found and checked as the segmenter's bundle does, read by MONAI."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.bundles import load_script
from tools.io.files import InputError


def find_series(folder: Path) -> list[Path]:
    """Return a folder's subfolders that hold DICOM files, and the folder itself if it does; unchecked, in order."""
    return load_script("lung_tissue_seg", "dicom").find_series(Path(folder))


def read_series(folder: Path) -> nib.Nifti1Image:
    """Read the CT of a folder.

    Args:
        folder: Folder with the DICOM files of one series; other files do not count.

    Returns:
        HU, int16 where all are whole numbers, else float32, shape (columns, rows, slices), slices in the order of
        their numbers; the affine leads to RAS in mm, as always in NIfTI.

    Raises:
        InputError: if the files are not one whole series of CT, in which slices lie above each other, or cannot be
            decoded.
    """
    from monai.transforms import LoadImage  # takes seconds, and few need it

    try:
        load_script("lung_tissue_seg", "dicom").check_case(Path(folder))
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of readers that are not installed
            image = LoadImage()(folder)
    except Exception as error:  # each reader and decoder raises its own
        cause = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{folder} cannot be read as DICOM: {cause}; convert it to NIfTI, by dcm2niix for one"
        ) from None
    hu = image.numpy()
    whole = np.array_equal(hu, hu.round()) and np.abs(hu).max() < 2**15
    file = nib.Nifti1Image(hu.astype(np.int16) if whole else hu, image.affine.numpy())
    file.set_qform(file.affine, "scanner")
    file.set_sform(file.affine, "scanner")
    file.header.set_xyzt_units("mm")
    return file


def refuse_series(items: list[dict], datalist: Path) -> None:
    """Raise InputError if a datalist names a folder as CT: a file's hash is what proves that nothing leaked."""
    for item in items:
        if Path(item["image"]).is_dir():
            raise InputError(
                f"{datalist}: {item['image']} is a folder; python -m tools dataset makes a NIfTI file of a DICOM series"
            )
