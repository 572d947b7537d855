"""Writing CTs as DICOM series, for every test that reads some."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAMELESS = ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName", "Manufacturer")


def write_series(
    folder: Path, hu: np.ndarray, affine: np.ndarray, backwards: bool = False, changes: Iterable[tuple] = ()
) -> Path:
    """Write a CT as a series of CT Image Storage, IM0000 and on.

    Args:
        folder: new folder; its name makes the UIDs, so that the same call writes the same files.
        hu: whole HU, shape (columns, rows, slices).
        affine: from columns, rows and slices to RAS in mm; neither square pixels nor right angles are needed.
        backwards: give the last slice the lowest InstanceNumber.
        changes: (slice or "all", keyword, value) of tags to set; the value None makes a tag empty.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    sizes_mm = np.linalg.norm(lps[:3, :3], axis=0)
    series, study, frame = (generate_uid(entropy_srcs=[str(folder), kind]) for kind in ("series", "study", "frame"))
    count = hu.shape[2]
    for place in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(place)])
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.Modality, slice_.SeriesInstanceUID, slice_.StudyInstanceUID = "CT", series, study
        slice_.FrameOfReferenceUID, slice_.PositionReferenceIndicator = frame, None
        slice_.PatientName, slice_.PatientID = "SYNTHETIC^", "drawn"
        slice_.StudyDate, slice_.StudyTime, slice_.SeriesNumber = "20260101", "120000", 1
        slice_.ImageType, slice_.ImageComments = ["DERIVED", "PRIMARY", "AXIAL"], "SYNTHETIC"
        slice_.AcquisitionNumber, slice_.KVP = None, None
        for keyword in NAMELESS:
            setattr(slice_, keyword, None)
        slice_.SeriesDescription = "chest"
        slice_.InstanceNumber = count - place if backwards else place + 1
        slice_.ImagePositionPatient = [round(float(value), 6) for value in (lps @ [0, 0, place, 1])[:3]]
        slice_.ImageOrientationPatient = (lps[:3, :2] / sizes_mm[:2]).T.ravel().round(9).tolist()
        slice_.PixelSpacing = [round(float(size), 9) for size in sizes_mm[1::-1]]
        slice_.SliceThickness = round(float(sizes_mm[2]), 9)
        slice_.Columns, slice_.Rows = hu.shape[:2]
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = (hu[..., place].T + 1024).astype(np.int16).tobytes()
        for where, keyword, value in changes:
            if where in (place, "all"):
                setattr(slice_, keyword, value)
        slice_.save_as(folder / f"IM{place:04d}", enforce_file_format=True)
    return folder
