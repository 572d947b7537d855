"""Folders that each hold one CT as a DICOM series, and whether they hold all of it.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

from pathlib import Path

import numpy as np

TOLERANCE = 0.01  # of the distance of two slices, in which it may vary
TAGS = ["SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "InstanceNumber", "NumberOfFrames"]
OPTIONAL = ("SeriesDescription", "NumberOfFrames")
TAGS += ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"]


def find_series(folder: Path) -> list[Path]:
    """Return a folder's subfolders that hold DICOM files, and the folder itself if it does; unchecked, in order."""
    return [place for place in (folder, *sorted(filter(Path.is_dir, folder.iterdir()))) if dicom_files(place)]


def dicom_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are DICOM by their content."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.endswith((".nii", ".nii.gz")))
    if not files:
        return []
    import pydicom.misc  # not needed where all CTs are NIfTI

    return [path for path in files if path.name != "DICOMDIR" and pydicom.misc.is_dicom(path)]


def check_case(folder: Path) -> None:
    """Raise ValueError if a case cannot have the folder's name, or the folder does not hold one whole series."""
    if "." in folder.name:
        raise ValueError(f"{folder}: MONAI would cut the case's name at its last dot; rename the folder")
    check_series(folder)


def check_series(folder: Path) -> None:
    """Raise ValueError if a folder's DICOM files are not all slices of one CT, in the order of their numbers."""
    files = dicom_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no DICOM file")
    import pydicom

    headers = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS) for path in files]
    series: dict[str, list] = {}
    for header in headers:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
    if len(series) > 1:
        names = sorted(
            f"{found[0].get('SeriesDescription', uid)} ({len(found)} files)" for uid, found in series.items()
        )
        raise ValueError(f"{folder} holds {len(series)} series: {', '.join(names)}; give each a folder of its own")
    for path, header in zip(files, headers):
        if header.get("Modality") != "CT":
            raise ValueError(f"{path} is {header.get('Modality', 'of no modality')}, not CT")
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"{path} holds several frames (enhanced CT); convert it to NIfTI, by dcm2niix for one")
        missing = [tag for tag in TAGS[1:] if tag not in OPTIONAL and header.get(tag) is None]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}")
    if len(headers) < 2:
        raise ValueError(f"{folder} holds one slice; a series needs two to say how far they lie apart")
    headers.sort(key=lambda header: int(header.InstanceNumber))
    for tag in ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
        values = np.array([np.ravel(header.get(tag)).astype(float) for header in headers])
        if not np.allclose(values, values[0], atol=1e-4):
            raise ValueError(f"{folder}: the slices differ in {tag}")
    row, column = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise ValueError(f"{folder}: rows and columns are not at right angles (sheared); resample them first")
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    steps = np.diff(positions @ np.cross(row, column))
    usual = np.median(steps)
    if usual == 0 or (np.sign(steps) != np.sign(usual)).any():
        raise ValueError(f"{folder}: the slices' InstanceNumber does not follow their position, or two have the same")
    wrong = np.flatnonzero(np.abs(steps / usual - 1) > TOLERANCE)
    if len(wrong):
        one, other = (int(headers[wrong[0] + place].InstanceNumber) for place in (0, 1))
        apart = f"{abs(steps[wrong[0]]):g} mm apart, the others {abs(usual):g} mm"
        raise ValueError(f"{folder}: slices {one} and {other} lie {apart}: some are missing")
    if not np.allclose(np.diff(positions, axis=0), np.cross(row, column) * steps[:, None], atol=0.01 * abs(usual)):
        raise ValueError(f"{folder}: the slices are shifted against each other (a tilted gantry); resample them first")
