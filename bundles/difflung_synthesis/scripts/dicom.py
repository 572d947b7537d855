"""Folders that each hold one CT as a DICOM series: whether they hold all of it, and its slices in order of position.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

TOLERANCE = 0.1  # of a voxel, by which positions may differ
LOCALIZER = "LOCALIZER"
GROUPS = (b"\x02\x00", b"\x08\x00")  # with which a DICOM file without preamble begins
TAGS = ["SOPClassUID", "ImageType", "Modality", "SeriesInstanceUID", "SeriesDescription", "NumberOfFrames"]
RESCALE = ("RescaleSlope", "RescaleIntercept")
OPTIONAL = ("ImageType", "SeriesDescription", "NumberOfFrames", *RESCALE)
STEEPEST, FARTHEST = 100.0, 2.0**15  # slope and intercept of stored values to HU
TAGS += [*RESCALE, "BitsAllocated", "PixelRepresentation"]
TAGS += ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "Rows", "Columns"]
JUNK = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".pdf")
JUNK += (".png", ".jpg", ".jpeg", ".log", ".ini", ".db", ".zip", ".xlsx", ".docx", ".py", ".sh")
JUNK_NAMES = ("dicomdir", "license", "readme", "lockfile", "version")


def find_series(folder: Path) -> list[Path]:
    """Return a folder and the folders below it, at any depth, that hold DICOM files; unchecked, in order.

    Hidden folders do not count, and a folder that links lead to twice counts once.
    """
    return [place for place in _folders(Path(folder), set()) if next(_dicom_among(place), None)]


def _folders(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    yield folder
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            yield from _folders(place, seen)


def dicom_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are DICOM by their content, with or without a preamble."""
    return list(_dicom_among(folder))


def _dicom_among(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files of a folder; pydicom is not needed where there is none."""
    for path in sorted(folder.iterdir()):
        if not is_junk(path) and path.is_file() and is_dicom(path):
            yield path


def is_junk(path: Path) -> bool:
    """Return whether a file beside a series is none of it by its name: hidden, a text, a table, a picture, NIfTI."""
    name = path.name.lower()
    return name.startswith(".") or name.endswith(JUNK) or name in JUNK_NAMES


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its content."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    if start[:2] not in GROUPS or len(start) < 132:
        return False
    return read_header(path).get("SOPClassUID") is not None


def read_header(path: Path):
    """Return what a DICOM file says of its picture, a pydicom dataset; empty if it cannot be read."""
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS, force=True)
        for tag in TAGS:  # values are decoded only now
            header.get(tag)
        return header
    except Exception:  # a damaged file may raise anything
        return pydicom.Dataset()


def kind_of(folder: Path) -> str:
    """Return ``CT``, or what the DICOM files of a folder are instead, such as ``MR`` or ``a localizer``."""
    kinds = []
    for path in dicom_files(folder):
        header = read_header(path)
        kinds.append("a localizer" if is_localizer(header) else str(header.get("Modality") or "of no modality"))
        if kinds[-1] == "CT":
            break
    return (kinds or ["no DICOM"])[-1]


def is_localizer(header) -> bool:
    """Return whether a slice is a localizer (scout, topogram)."""
    kinds = header.get("ImageType") or ()
    return LOCALIZER in ([kinds] if isinstance(kinds, str) else kinds)


def check_series(folder: Path) -> list[Path]:
    """Return the files of a folder's CT in the order of their positions along the slices' normal.

    Localizers are left out, and so is a file that the folder holds twice. InstanceNumber is not read: it may be
    missing, begin again or be wrong.

    Raises:
        ValueError: If the DICOM files are not all slices of one CT, or a file is neither DICOM nor known to be none.
    """
    folder = Path(folder)
    found = {path: read_header(path) for path in dicom_files(folder)}
    if not found:
        raise ValueError(f"{folder} holds no DICOM file")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path not in found and not is_junk(path):
            raise ValueError(f"{path} is not DICOM, or damaged: a slice may be missing; mend it, or take it away")
    headers = {path: header for path, header in found.items() if not is_localizer(header)}
    if not headers:
        raise ValueError(f"{folder} holds localizers alone; name the folder of the CT")
    _check_kind(folder, headers)
    ordered = _by_position(folder, headers)
    _check_places(folder, ordered, [headers[path] for path in ordered])
    return ordered


def _check_kind(folder: Path, headers: dict) -> None:
    """Raise ValueError unless all slices are of one series of CT and tell where they lie."""
    series: dict[str, list] = {}
    for header in headers.values():
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
    for path, header in headers.items():
        if not len(header):
            raise ValueError(f"{path} is damaged: its header cannot be read; mend it, or export the series anew")
        if header.get("Modality") != "CT":
            raise ValueError(f"{path} is {header.get('Modality') or 'of no modality'}, not CT; take it out of {folder}")
    if len(series) > 1:
        names = sorted(
            f"{found[0].get('SeriesDescription', uid)} ({len(found)} files)" for uid, found in series.items()
        )
        raise ValueError(f"{folder} holds {len(series)} series: {', '.join(names)}; give each a folder of its own")
    for path, header in headers.items():
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ValueError(f"{path} holds several frames (enhanced CT); convert it to NIfTI, by dcm2niix for one")
        missing = [tag for tag in TAGS if tag not in OPTIONAL and header.get(tag) is None]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; export the series anew")
        if int(header.SamplesPerPixel) > 1:
            raise ValueError(f"{path} holds colours, not HU; take it out of {folder}")
        _check_rescale(path, header)
        for tag, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            values = numbers(header, tag)
            if len(values) != count or not np.isfinite(values).all() or (tag == "PixelSpacing" and min(values) <= 0):
                raise ValueError(f"{path}: {tag} is {header.get(tag)}, which means nothing; export the series anew")


def _check_rescale(path: Path, header) -> None:
    """Raise ValueError unless a slice's stored values become HU by numbers that can be right."""
    slope, intercept = (numbers(header, tag) if header.get(tag) is not None else np.zeros(0) for tag in RESCALE)
    if not len(slope) == len(intercept) == 1:
        raise ValueError(f"{path} lacks RescaleSlope or RescaleIntercept, which lead to HU; export the series anew")
    if not (0 < slope[0] <= STEEPEST and abs(intercept[0]) <= FARTHEST):
        raise ValueError(
            f"{path}: RescaleSlope is {slope[0]:g} and RescaleIntercept {intercept[0]:g}, which lead to no HU; "
            "export the series anew"
        )


def numbers(header, tag: str) -> np.ndarray:
    """Return the numbers of a tag, float64, shape (values,); empty if they are none."""
    try:
        return np.ravel(header.get(tag)).astype(float)
    except (TypeError, ValueError):
        return np.zeros(0)


def _by_position(folder: Path, headers: dict) -> list[Path]:
    """Return the files in the order of their positions, each position once."""
    first = next(iter(headers.values()))
    row, column = numbers(first, "ImageOrientationPatient").reshape(2, 3)
    normal = np.cross(row, column)
    ordered: list[Path] = []
    for path in sorted(headers, key=lambda path: float(numbers(headers[path], "ImagePositionPatient") @ normal)):
        position = numbers(headers[path], "ImagePositionPatient")
        if ordered and np.array_equal(position, numbers(headers[ordered[-1]], "ImagePositionPatient")):
            if _pixels(path) != _pixels(ordered[-1]):
                names = f"{ordered[-1].name} and {path.name}"
                raise ValueError(f"{folder}: {names} lie at the same place but differ; take one of them away")
            continue
        ordered.append(path)
    return ordered


def _pixels(path: Path) -> bytes:
    import pydicom

    return pydicom.dcmread(path, force=True).get("PixelData", b"")


def _check_places(folder: Path, ordered: list[Path], headers: list) -> None:
    """Raise ValueError unless slices, in order, are alike and lie straight above each other at equal distances."""
    if len(headers) < 2:
        raise ValueError(f"{folder} holds one slice; a series needs two to say how far they lie apart")
    orientations = np.array([numbers(header, "ImageOrientationPatient") for header in headers])
    spacings = np.array([numbers(header, "PixelSpacing") for header in headers])
    sizes = np.array([[int(header.Rows), int(header.Columns)] for header in headers])
    kinds = np.array([[int(header.BitsAllocated), int(header.PixelRepresentation)] for header in headers])
    side = sizes[0].max()
    for tag, differs in (
        ("Rows or Columns", (sizes != sizes[0]).any()),
        ("BitsAllocated or PixelRepresentation", (kinds != kinds[0]).any()),
        ("ImageOrientationPatient", np.abs(orientations - orientations[0]).max() * side > TOLERANCE),
        ("PixelSpacing", np.abs(spacings / spacings[0] - 1).max() * side > TOLERANCE),
    ):
        if differs:
            raise ValueError(f"{folder}: the slices differ in {tag}; give each series a folder of its own")
    row, column = orientations[0].reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise ValueError(f"{folder}: rows and columns are not at right angles (sheared); resample them first")
    positions = np.array([numbers(header, "ImagePositionPatient") for header in headers])
    normal = np.cross(row, column)
    heights = positions @ normal
    steps = np.diff(heights)
    usual = np.median(steps)
    if usual <= 0:
        raise ValueError(f"{folder}: the slices lie in one plane, {steps.max():g} mm apart; is it one series?")
    wrong = np.flatnonzero(np.abs(steps / usual - 1) > TOLERANCE)
    if len(wrong):
        one, other = (ordered[wrong[0] + place].name for place in (0, 1))
        apart = f"{steps[wrong[0]]:.6g} mm apart, the others {usual:.6g} mm"
        fault = "some are missing" if steps[wrong[0]] > usual else "they overlap"
        raise ValueError(f"{folder}: slices {one} and {other} lie {apart}: {fault}; export the series anew")
    even = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    if even > TOLERANCE * usual:
        raise ValueError(f"{folder}: the distances of slices drift, by {even:.3g} mm in all; resample them first")
    in_plane = positions - heights[:, None] * normal
    if np.abs(in_plane - in_plane[0]).max() > TOLERANCE * spacings[0].min():
        raise ValueError(f"{folder}: the slices are shifted against each other (a tilted gantry); resample them first")


def series_affine(files: Sequence[Path]) -> np.ndarray:
    """Return where the slices lie that :func:`check_series` put in order.

    Returns:
        Affine from columns, rows and slices to RAS in mm, shape (4, 4).
    """
    first, last = (read_header(path) for path in (files[0], files[-1]))
    row, column = numbers(first, "ImageOrientationPatient").reshape(2, 3)
    down, across = numbers(first, "PixelSpacing")
    start, end = (numbers(header, "ImagePositionPatient") for header in (first, last))
    affine = np.eye(4)
    affine[:3] = np.stack([row * across, column * down, (end - start) / (len(files) - 1), start], axis=1)
    return np.diag([-1, -1, 1, 1]) @ affine
