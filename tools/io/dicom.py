"""CTs that are no NIfTI files as NIfTI images in memory: DICOM series, checked as the segmenter's bundle does."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.bundles import load_script
from tools.io.files import InputError, first_line


def series_files(folder: Path) -> list[Path]:
    """Return the files of a series in the order of their positions.

    Raises:
        InputError: if they are not one whole series of CT.
    """
    try:
        return load_script("lung_tissue_seg", "dicom").check_series(Path(folder))
    except ValueError as error:
        raise InputError(str(error)) from None


def read_series(folder: Path) -> nib.Nifti1Image:
    """Read the CT of a folder.

    Args:
        folder: Folder with the DICOM files of one series.

    Returns:
        HU, int16 where all are whole numbers, else float32, shape (columns, rows, slices), slices in the order of
        their positions; the affine leads to RAS in mm, as always in NIfTI.

    Raises:
        InputError: if the files are not one whole series of CT, in which slices lie above each other, cannot be
            decoded, or were read in another place than they say.
    """
    files = series_files(folder)
    loading = load_script("lung_tissue_seg", "loading")  # takes seconds, and few need it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break the standard
            reader = loading.SeriesReader()
            hu, about = reader.get_data(reader.read(folder))
    except Exception as error:  # each decoder raises its own
        raise InputError(
            f"{folder} cannot be read as DICOM: {first_line(error)}; convert it to NIfTI, by dcm2niix for one"
        ) from None
    told = load_script("lung_tissue_seg", "dicom").series_affine(files)
    try:
        shape = (*hu.shape[:2], len(files))
        load_script("lung_tissue_seg", "volumes").check_grid(
            about["affine"], hu.shape, folder, told, shape, "what its slices tell"
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    return _as_nifti(hu, about["affine"])


def read_image(path: Path) -> nib.Nifti1Image:
    """Read a file that is no NIfTI, such as .nrrd, by the reader that is installed for it; InputError if it cannot."""
    from monai.transforms import LoadImage  # takes seconds, and few need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of readers that are not installed
            image = LoadImage()(path)
    except Exception as error:  # each reader raises its own
        raise InputError(f"{path} cannot be read: {first_line(error)}; convert it to NIfTI") from None
    return _as_nifti(image.numpy(), image.affine.numpy())


def _as_nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Return voxels as a NIfTI image in mm, int16 where all are whole numbers that fit, else float32."""
    whole = bool(np.isfinite(array).all()) and np.array_equal(array, array.round()) and np.abs(array).max() < 2**15
    file = nib.Nifti1Image(array.astype(np.int16 if whole else np.float32), affine)
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
