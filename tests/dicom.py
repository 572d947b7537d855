"""CTs as DICOM series, for the tests of everything that reads them."""

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

TURN = 0.15  # rad about the patient's axis
SPACING_MM = (0.8, 0.9, 2.5)  # columns, rows, slices


def ct(slices: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """HU of columns, rows and slices, and the affine to RAS of a CT that is turned a little."""
    hu = np.random.default_rng(0).integers(-1000, 200, (40, 36, slices)).astype(np.int16)
    affine = np.eye(4)
    turned = np.array([[np.cos(TURN), np.sin(TURN), 0], [-np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
    affine[:3, :3] = np.diag([-1, -1, 1]) @ turned @ np.diag(SPACING_MM)  # DICOM is LPS
    affine[:3, 3] = [-10, 20, 300]
    return hu, affine


def write_series(
    folder: Path, hu: np.ndarray, affine: np.ndarray, backwards: bool = False, changes: tuple = ()
) -> Path:
    """Write a CT as DICOM slices, whose numbers go up or down the patient; ``changes`` sets tags of single slices."""
    folder.mkdir(parents=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing_mm = np.linalg.norm(lps[:3, :3], axis=0)
    series, study = generate_uid(entropy_srcs=[str(folder)]), generate_uid(entropy_srcs=["study"])
    count = hu.shape[2]
    for place in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(place)])
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.Modality, slice_.SeriesInstanceUID, slice_.StudyInstanceUID = "CT", series, study
        slice_.SeriesDescription = "chest"
        slice_.InstanceNumber = count - place if backwards else place + 1
        slice_.ImagePositionPatient = [round(float(value), 6) for value in (lps @ [0, 0, place, 1])[:3]]
        slice_.ImageOrientationPatient = (lps[:3, :2] / spacing_mm[:2]).T.ravel().round(9).tolist()
        slice_.PixelSpacing, slice_.SliceThickness = spacing_mm[1::-1].round(6).tolist(), round(float(spacing_mm[2]), 6)
        slice_.Columns, slice_.Rows = hu.shape[:2]
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = (hu[..., place].T + 1024).astype(np.int16).tobytes()
        for where, tag, value in changes:
            if where in (place, "all"):
                setattr(slice_, tag, value)
        slice_.save_as(folder / f"IM{place:04d}", enforce_file_format=True)
    return folder
