"""Files that hold a CT or a tissue map: which of a folder count, what their cases are called, what is refused.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

import gzip
import importlib.util
import unicodedata
import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from .dicom import check_series, find_series, is_junk, kind_of

READERS = {".nii.gz": "nibabel", ".nii": "nibabel", ".nrrd": "nrrd", ".mha": "itk", ".mhd": "itk"}  # ending to package
MOST_VOXELS = 2**30  # 1024 x 1024 x 1024
MOST_INFLATED, MOST_INFLATED_CT = 1040, 200  # times the size of a gzip file: deflate's limit; noise hardly shrinks
VOXEL_MM = (0.05, 100.0)
SLANTED = 0.02  # cosine between two axes; volumes are then right to 0.02 %
WHOLE, TOLERANCE = 1e-3, 0.1  # of a label; of a voxel, by which positions may differ
SAMPLE = 1_000_000  # voxels that are counted, about
AIR_HU, TISSUE_HU, BONE_HU = (-1200, -500), (-400, 400), 800  # air and lung; all that is dense; above: bone and metal
LEAST_AIR, LEAST_TISSUE, MOST_BONE, MOST_DARK = 0.01, 0.01, 0.1, 0.03  # of the voxels
BLOCK = (64, 8)  # voxels of the first two axes, copied together
TO_HU = "convert it to HU first"


def ending(path: Path | str) -> str:
    """Return the ending of a volume's file in lower case, empty where it is of no known format.

    Example:
        >>> ending("a.NII.GZ"), ending("a.b.mha"), ending("a.txt")
        ('.nii.gz', '.mha', '')
    """
    name = Path(path).name.lower()
    return next((known for known in READERS if name.endswith(known)), "")


def is_foreign(path: Path | str) -> bool:
    """Return whether a file is a volume of another format than NIfTI."""
    return READERS.get(ending(path), "nibabel") != "nibabel"


def case_name(path: Path | str) -> str:
    """Return a file's name without its ending.

    Example:
        >>> case_name("scans/case012.nii.gz"), case_name("1.2.840"), case_name("b.NII")
        ('case012', '1.2.840', 'b')
    """
    name = Path(path).name
    return name[: len(name) - len(ending(name))]


def series_name(place: Path, folder: Path) -> str:
    """Return the case name of a series' folder: its way from the folder that was looked in, with underscores.

    Example:
        >>> series_name(Path("/data/p1/2020/lung 1.0"), Path("/data")), series_name(Path("/data/p1"), Path("/data/p1"))
        ('p1_2020_lung 1.0', 'p1')
    """
    return "_".join(place.relative_to(folder).parts) or place.resolve().name


def list_volumes(folder: Path, series: bool = True) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the volumes of a folder, and what was passed over; hidden files and texts are in neither.

    Args:
        folder: Folder to look in: files of a volume directly in it, DICOM series at any depth, itself included.
        series: Whether DICOM series count.

    Returns:
        Case name to file, or to the folder of a series, sorted; and what else lies there, with the reason.

    Raises:
        ValueError: If two volumes have the same case name, capitals not counted.
    """
    folder = Path(folder)
    passed: dict[str, str] = {}
    places = find_series(folder) if series else []
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            reason = _not_read(path, in_series=folder in places)
        else:
            held = [] if path in places else [place for place in path.iterdir() if ending(place)]
            reason = f"a folder of {len(held)} volumes; name it itself" if held else ""
        if reason:
            passed[path.name] = reason
        elif path.is_file() and ending(path):
            found.append((case_name(path), path))
    for place in places:
        if (kind := kind_of(place)) == "CT":
            found.append((series_name(place, folder), place))
        else:
            passed[str(place.relative_to(folder))] = f"{kind}, not CT"
    cases: dict[str, Path] = {}
    alike: dict[str, Path] = {}
    for name, path in found:
        # names that differ in capitals, or in how accents are stored, are one file on many disks
        same = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), path)
        if same != path:
            names = f"{same.relative_to(folder)} and {path.relative_to(folder)}"
            raise ValueError(f"{folder} holds both {names}, which are one case, {name}; remove one")
        cases[name] = path
    return dict(sorted(cases.items())), passed


def _not_read(path: Path, in_series: bool) -> str:
    """Return why a file is no volume that can be read; empty if it is one, or none that anybody would miss."""
    package = READERS.get(ending(path))
    if not path.is_file():
        return "a link that leads nowhere"
    if path.suffix.lower() in (".raw", ".zraw") and path.with_suffix(".mhd").is_file():
        return ""  # the voxels of a header beside it
    if path.name.lower().endswith(".zip"):
        return "an archive; unpack it"
    if package is None:
        return "" if in_series or is_junk(path) else "neither a volume nor DICOM"
    if package == "nibabel" and path.name[-len(ending(path)) :][:4] not in (".nii", ".NII"):
        return "nibabel reads no such ending; write it in small letters"
    missing = importlib.util.find_spec(package) is None
    return f"needs the package {'pynrrd' if package == 'nrrd' else package}" if missing else ""


def check_file(path: Path | str, ct: bool = False, like: Path | str | None = None) -> None:
    """Check a volume by its header, before any voxel is read: memory stays small whatever the header says.

    Args:
        path: File, or folder of a DICOM series.
        ct: Whether it is a CT, which no file can hold in a hundredth of its size.
        like: The CT of a map, which must have its sides.

    Raises:
        ValueError: If it is missing, damaged or cut short, or its header tells of no single volume of numbers in mm.
    """
    path = Path(path)
    if path.is_dir():
        check_series(path)
        return
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if READERS.get(ending(path)) != "nibabel":
        return
    try:
        file = nib.load(path)
        shape, affine, kind, size = file.shape, file.affine, file.get_data_dtype(), file.header.get_zooms()
        offset = file.dataobj.offset
    except Exception as error:  # nibabel, gzip and zlib each raise their own on a damaged file
        raise ValueError(
            f"{path} cannot be read as NIfTI, it may be truncated: {first_line(error)}; copy it anew"
        ) from None
    if kind.kind not in "iuf":
        raise ValueError(f"{path} holds voxels of type {kind}; expected one number per voxel")
    if min(shape, default=0) < 1:
        raise ValueError(f"{path} is empty: its shape is {shape}; write it anew")
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    if voxels > MOST_VOXELS:
        raise ValueError(f"{path} has {voxels} voxels, shape {shape}; at most {MOST_VOXELS} are read; crop it")
    held, most = path.stat().st_size, MOST_INFLATED_CT if ct else MOST_INFLATED
    told = f"its header tells of {offset + voxels * kind.itemsize} bytes, the file has {held}"
    packed = ending(path) == ".nii.gz"
    if offset + voxels * kind.itemsize > held * (most if packed else 1):
        raise ValueError(f"{path} cannot be read as NIfTI, it may be truncated: {told}; copy it anew")
    if not packed and offset + voxels * kind.itemsize < held:
        raise ValueError(f"{path} holds more than its header says: {told}; write it anew")
    if like is not None and Path(like).is_file() and READERS.get(ending(like)) == "nibabel":
        of_ct = nib.load(like).shape
        if sorted(shape) != sorted(of_ct):
            raise ValueError(f"{path} has shape {shape}, but {like} has {of_ct}; resample it to the CT")
    check_affine(affine, path)
    _check_transforms(file.header, path)
    for axis, (along, told) in enumerate(zip(nib.affines.voxel_sizes(affine), size[:3])):
        if not abs(told / along - 1) * shape[axis] <= TOLERANCE:
            raise ValueError(f"{path}: voxels are {along:.6g} mm by its affine, {told:.6g} mm by pixdim; correct one")


def _check_transforms(header, path: Path) -> None:
    """Raise ValueError if a NIfTI header says in two ways, qform and sform of one code, where the voxels lie."""
    codes = [int(header[name]) for name in ("qform_code", "sform_code")]
    if codes[0] != codes[1] or codes[0] == 0:
        return
    try:
        q, s = header.get_qform(), header.get_sform()
    except Exception as error:  # numbers that are no rotation
        raise ValueError(f"{path} has no usable affine: {first_line(error)}; correct its qform") from None
    shape = (list(header.get_data_shape()) + [1, 1, 1])[:3]
    try:
        check_grid(q, shape, path, s, shape, "its sform")
    except ValueError:
        raise ValueError(f"{path}: qform and sform, both of code {codes[0]}, differ; correct one") from None


def check_affine(affine: np.ndarray, path: Path | str) -> None:
    """Raise ValueError if an affine, shape (4, 4), is none, is sheared, or its voxels are not of a CT's size in mm."""
    sizes = nib.affines.voxel_sizes(affine) if np.isfinite(affine).all() else np.full(3, np.nan)
    told = " x ".join(f"{size:.4g}" for size in sizes)
    if not ((sizes >= VOXEL_MM[0]) & (sizes <= VOXEL_MM[1])).all():
        raise ValueError(
            f"{path} has no usable affine: its voxels are {told} mm; expected {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm"
        )
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 0.1:
        raise ValueError(f"{path} has no usable affine: two of its axes run the same way; correct its header")
    axes = affine[:3, :3] / sizes
    slanted = np.abs(axes.T @ axes - np.eye(3)).max()
    if slanted > SLANTED:
        degrees = np.degrees(np.arcsin(min(1.0, slanted)))
        raise ValueError(
            f"{path}: its axes are {degrees:.3g} degrees off right angles (sheared, as from a tilted gantry); "
            "resample it to a straight grid first"
        )


def read_nifti(path: Path | str) -> np.ndarray:
    """Return the voxels of a NIfTI file in C order; a gzip stream is read once, to its end, for its checksum's sake.

    Raises:
        ValueError: If the stream is cut short or damaged, or holds more than its header says.
    """
    file = nib.load(path)
    if ending(path) != ".nii.gz":
        return reordered(np.asarray(file.dataobj))
    declared = file.dataobj.offset + file.dataobj.dtype.itemsize * int(np.prod(file.shape, dtype=object))
    try:
        with gzip.open(path) as stream:
            content = stream.read(declared + 1)
    except EOFError as error:
        raise ValueError(
            f"{path} cannot be read as NIfTI, it may be truncated: {first_line(error)}; copy it anew"
        ) from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}; copy it anew") from None
    if len(content) > declared:
        raise ValueError(f"{path} holds more than its header says, which is {declared} bytes; write it anew")
    return reordered(np.asarray(type(file).from_bytes(content).dataobj))


def reordered(array: np.ndarray, order: str = "C") -> np.ndarray:
    """Return an array whose memory is in C or in Fortran (F) order.

    NIfTI files are in F order. A volume is copied in blocks that stay in a processor's cache: numpy itself takes ten
    times as long for a CT.
    """
    if array.ndim != 3 or array.flags[f"{order}_CONTIGUOUS"]:
        return np.asarray(array, order=order)
    copy = np.empty(array.shape, array.dtype, order)
    for i in range(0, array.shape[0], BLOCK[0]):
        for j in range(0, array.shape[1], BLOCK[1]):
            place = slice(i, i + BLOCK[0]), slice(j, j + BLOCK[1])
            copy[place] = array[place]
    return copy


def check_hu(hu: np.ndarray, path: Path | str) -> None:
    """Raise ValueError if an array cannot be a CT in HU, by the shares of its voxels near air, lung and tissue.

    Neither the darkest voxel nor padding of one value counts. Crops without air round the patient, and windows whose
    ends are cut off, have lung and tissue as well.

    Args:
        hu: Values, any shape.
        path: File, for the message.
    """
    bad = hu.size - int(np.count_nonzero(np.isfinite(hu)))
    if bad:
        raise ValueError(f"{path} holds {bad} NaN or infinite voxels; replace them, by -1024 outside the scan")
    values = hu.ravel()[:: max(1, hu.size // SAMPLE)]
    lowest, highest = float(hu.min()), float(hu.max())
    air = np.mean((values >= AIR_HU[0]) & (values <= AIR_HU[1]))
    tissue = np.mean((values >= TISSUE_HU[0]) & (values <= TISSUE_HU[1]))
    bone = np.mean(values > BONE_HU)
    dark = np.mean((values < AIR_HU[0]) & (values > lowest))  # darker than air; padding has one value, the lowest
    if air < LEAST_AIR or tissue < LEAST_TISSUE or bone > MOST_BONE or dark > MOST_DARK:
        raise ValueError(
            f"{path} ranges from {lowest:g} to {highest:g}, which cannot be HU (air is -1000): "
            f"{air:.1%} of it is like air or lung, {tissue:.1%} like tissue, {bone:.1%} above {BONE_HU}, "
            f"{dark:.1%} darker than air; {TO_HU}"
        )


def check_whole(label: np.ndarray, path: Path | str) -> None:
    """Raise ValueError if a value is no whole number, by more than a thousandth."""
    values = np.unique(label)
    wrong = [float(value) for value in values if not np.isfinite(value) or abs(value - np.round(value)) > WHOLE]
    if wrong:
        raise ValueError(f"{path} holds label {wrong[0]:.9g}, but labels must be integers; resample it by nearest")


def check_values(label: np.ndarray, path: Path | str, values: Mapping[str, int]) -> None:
    """Raise ValueError if a map holds a value that has no name; ``values`` is name to value."""
    unknown = sorted(set(np.unique(label).tolist()) - set(values.values()))
    if unknown:
        named = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(f"{path} holds {', '.join(f'{value:g}' for value in unknown[:10])}; labels name {named}")


def check_grid(affine: np.ndarray, shape, path: Path | str, of_ct: np.ndarray, ct_shape, ct: Path | str) -> None:
    """Raise ValueError unless a volume lies on a CT's grid, within a tenth of a voxel.

    Args:
        affine: Of the volume, shape (4, 4), in mm.
        shape: Its three sides.
        path: Its file, for the message.
        of_ct: Affine of the CT.
        ct_shape: The CT's sides.
        ct: The CT's file.
    """
    if tuple(shape) != tuple(ct_shape):
        raise ValueError(f"{path} has shape {tuple(shape)}, but {ct} has {tuple(ct_shape)}; resample it to the CT")
    corners = np.array(list(np.ndindex(2, 2, 2)), float) * (np.array(shape) - 1)
    places = nib.affines.apply_affine(np.linalg.inv(of_ct) @ affine, corners)
    shift = np.abs(places - corners).max()
    if not shift <= TOLERANCE:
        apart = np.abs(nib.affines.apply_affine(affine - of_ct, corners)).max()
        raise ValueError(
            f"{path} has another affine than {ct} (voxels lie up to {apart:.6g} mm apart, {shift:.3g} voxels); "
            "resample it to the CT"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the error's name if it says nothing."""
    return str(error).strip().split("\n")[0].rstrip(".; ") or type(error).__name__
