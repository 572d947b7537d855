"""DICOM SEG of a labelled series, by highdicom, which only who wants it installs."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom

from tools.io.dicom import series_files
from tools.io.files import InputError, atomic_file

PIN = "highdicom==0.28.2"


def writer() -> ModuleType:
    """Return ``tools.io.dicom_seg``.

    Raises:
        InputError: if highdicom is not installed.
    """
    try:
        return importlib.import_module("tools.io.dicom_seg")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "highdicom":
            raise
        raise InputError(f"--dicom_seg needs highdicom, which is not installed: pip install {PIN}") from None


def slice_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a series in the order of their positions."""
    return series_files(folder)


def check_series(cases: dict[str, Path]) -> None:
    """Check that each case can become a DICOM SEG, before anything is computed.

    Args:
        cases: Case name to CT.

    Raises:
        InputError: if highdicom is missing, a CT is no DICOM series, or it lacks a tag that a SEG repeats.
    """
    module = writer()
    for path in cases.values():
        if not path.is_dir():
            raise InputError(f"--dicom_seg needs DICOM series, but {path} is a NIfTI file")
        first = slice_files(path)[0]
        try:
            module.check_repeated(pydicom.dcmread(first, stop_before_pixels=True), first)
        except ValueError as error:
            raise InputError(str(error)) from None


def save_seg(folder: Path, tissues: np.ndarray, labels: dict[str, int], version: str, path: Path) -> None:
    """Write a tissue map as DICOM SEG.

    Args:
        folder: The series.
        tissues: Label values, shape (columns, rows, slices), slices in order, as ``read_series``.
        labels: Tissue name to value.
        version: Version of the bundle.
        path: File to write.
    """
    slices = [pydicom.dcmread(path) for path in slice_files(folder)]
    seg = writer().segmentation(np.swapaxes(tissues, 0, 2), slices, labels, version)
    with atomic_file(path) as temporary:
        seg.save_as(temporary)
