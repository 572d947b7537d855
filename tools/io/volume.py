"""Reading and writing CT and tissue maps, with the checks that keep wrong input out of the chain."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.bundles import load_script
from tools.io.dicom import read_image, read_series
from tools.io.files import InputError, atomic_file
from tools.tissues import unlabelled_value

SYNTHETIC_MARK = "SYNTHETIC"


def _checks():
    """Return the checks of files that both bundles make too."""
    return load_script("lung_tissue_seg", "volumes")


def list_nifti(directory: Path) -> dict[str, Path]:
    """Return case name to path for the maps of a folder, sorted by name; hidden files and series do not count.

    Raises:
        InputError: if the folder is missing, holds no volume, or holds one case in two files.
    """
    cases, passed = list_volumes(directory, series=False)
    if not cases:
        raise InputError(f"{directory} holds no .nii or .nii.gz file{_others(passed)}")
    return cases


def list_cts(directory: Path) -> dict[str, Path]:
    """Return case name to path for the CTs of a folder, sorted by name: files of volumes and folders with DICOM series.

    A series' case is named after its way from the folder, and is found at any depth. The folder itself counts if DICOM
    files lie in it; nothing is read yet.

    Raises:
        InputError: if the folder is missing, holds no CT, or holds one case twice.
    """
    cases, passed = list_volumes(directory)
    if not cases:
        raise InputError(
            f"{directory} holds no .nii or .nii.gz file and no folder with a DICOM series{_others(passed)}"
        )
    return cases


def list_volumes(directory: Path, series: bool = True) -> tuple[dict[str, Path], dict[str, str]]:
    """Return case name to path of what :func:`list_cts` lists, and what else lies there, with the reason.

    Args:
        directory: Folder to look in.
        series: Whether folders with DICOM series count.

    Raises:
        InputError: if the folder is missing, or holds one case twice.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder" if directory.exists() else f"{directory} does not exist")
    try:
        return _checks().list_volumes(directory.absolute() if series else directory, series)
    except ValueError as error:
        raise InputError(str(error)) from None


def _others(passed: dict[str, str]) -> str:
    return f"; passed over: {'; '.join(f'{name} ({why})' for name, why in passed.items())}" if passed else ""


def is_volume(path: Path) -> bool:
    """Return whether a file has the ending of a volume, in any case."""
    return bool(_checks().ending(path))


def case_name(path: Path) -> str:
    """Return the name of a volume's file without its ending.

    Example:
        >>> case_name("scans/case012.nii.gz"), case_name("B.NII")
        ('case012', 'B')
    """
    return _checks().case_name(path)


def _load(path: Path, ct: bool = False, like: Path | None = None) -> tuple[np.ndarray, nib.Nifti1Image]:
    path = Path(path)
    checks = _checks()
    try:
        if not path.is_dir():  # read_series checks a series
            checks.check_file(path, ct, like)
        if path.is_dir() or checks.is_foreign(path):
            file = read_series(path) if path.is_dir() else read_image(path)
            array = np.asarray(file.dataobj)
        else:
            file, array = nib.load(path), checks.read_nifti(path)
        checks.check_affine(file.affine, path)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error) if str(path) in str(error) else _unreadable(path, error)) from None
    except Exception as error:  # nibabel, gzip and zlib each raise their own on a damaged file
        raise InputError(_unreadable(path, error)) from None
    if array.ndim != 3:
        held, hint = f"{array.ndim}D with shape {array.shape}", _hint_3d(array.shape)
        raise InputError(f"{path} is {held}; expected one 3D volume (W, H, slices){hint}")
    return array, file


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as NIfTI, it may be truncated: {_checks().first_line(error)}; copy it anew"


def _hint_3d(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"; save the slice with shape {(*shape, 1)}"
    if len(shape) > 3 and set(shape[3:]) == {1}:
        return "; remove the last axis, which has length 1, with nibabel.squeeze_image"
    return "; save each volume as a case of its own" if len(shape) > 3 else ""


def check_header(path: Path) -> None:
    """Check a CT by its header, or a series by its headers, before any voxel is read.

    Raises:
        InputError: if it is missing, damaged, cut short, or no volume of numbers in mm.
    """
    try:
        _checks().check_file(path, ct=True)
    except ValueError as error:
        raise InputError(str(error)) from None


def load_ct(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Load a CT in HU.

    Args:
        path: File of a volume, or folder that holds one DICOM series.

    Returns:
        HU as float32, shape (W, H, slices), and the nibabel image for its geometry.

    Raises:
        InputError: if the file or series cannot be read, is not 3D, holds NaN or infinity, or cannot be HU.
    """
    array, file = _load(path, ct=True)
    array = array.astype(np.float32, copy=False)
    try:
        _checks().check_hu(array, path)
    except ValueError as error:
        raise InputError(str(error)) from None
    return array, file


def load_labels(
    path: Path,
    labels: dict[str, int],
    foreign: dict[int, str] | None = None,
    like: nib.Nifti1Image | None = None,
    like_path: Path | None = None,
) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Load a tissue map.

    Args:
        path: File of a volume; whole numbers stored as floats are fine.
        labels: Tissue name to value; a value without a name is refused.
        foreign: Value in the file to tissue name, for a file of another label scheme; 0 is background unless it says
            otherwise.
        like: The CT on whose grid the map must lie; its axes are turned as the CT's.
        like_path: The CT's file, for messages.

    Returns:
        Label values of ``labels`` as int16, shape (W, H, slices), and the nibabel image for its geometry.

    Raises:
        InputError: if the file cannot be read, is not 3D, holds a value that is no integer (by a thousandth) or has no
            name, or lies on another grid.
    """
    array, file = _load(path, like=like_path)
    try:
        _checks().check_whole(array, path)
    except ValueError as error:
        raise InputError(str(error)) from None
    if array.dtype.kind == "f":
        array = np.round(array)
    values = np.unique(array)
    names = {value: name for name, value in labels.items()} if foreign is None else {0: "background"} | foreign
    unnamed = [int(value) for value in values if int(value) not in names]
    if unnamed:
        held = f"label{'s' * (len(unnamed) > 1)} {', '.join(map(str, unnamed[:10]))}{', ...' * (len(unnamed) > 10)}"
        if foreign is None:
            named = f"labels name only {', '.join(f'{name}={value}' for value, name in names.items())}"
            if unnamed == [unlabelled_value()]:
                named += "; that one says unlabelled, from which only the segmenter's bundle can learn"
        else:
            named = f"label_map names only {', '.join(f'{value}={name}' for value, name in names.items())}"
        raise InputError(f"{path} holds {held}, but {named}")
    if foreign is None:
        mapped = array.astype(np.int16)
    else:
        mapped = np.zeros(array.shape, np.int16)
        for value in values:
            mapped[array == value] = labels[names[int(value)]]
    if like is None:
        return mapped, file
    file = turned(nib.Nifti1Image(mapped, file.affine, file.header, dtype=np.int16), like)
    check_same_geometry(like, file, like_path, path)
    return np.asarray(file.dataobj), file


def load_mask(path: Path, like: nib.Nifti1Image, like_path: Path) -> np.ndarray:
    """Load a mask on the grid of a CT: where the file holds anything above 0.

    Args:
        path: NIfTI file; its axes may be in another order or direction than the CT's.
        like: The CT.
        like_path: Its file, for messages.

    Returns:
        bool, shape of the CT.

    Raises:
        InputError: if the file cannot be read, lies on another grid, or is empty.
    """
    _, file = _load(path, like=like_path)
    file = turned(file, like)
    check_same_geometry(like, file, like_path, path)
    mask = np.asarray(file.dataobj) > 0
    if not mask.any():
        raise InputError(f"{path} is empty: nothing in it lies above 0")
    return mask


def turned(image: nib.Nifti1Image, like: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image with its axes in the order and directions of another's; every voxel stays where it was."""
    own, wanted = (nib.io_orientation(file.affine) for file in (image, like))
    return image.as_reoriented(nib.orientations.ornt_transform(own, wanted))


def same_axes(path: Path, image: nib.Nifti1Image) -> bool:
    """Return whether a file stores its axes in the order and directions of an image."""
    return nib.aff2axcodes(nib.load(path).affine) == nib.aff2axcodes(image.affine)


def check_same_geometry(image: nib.Nifti1Image, label: nib.Nifti1Image, image_path: Path, label_path: Path) -> None:
    """Raise InputError if two files differ in shape or by more than a tenth of a voxel in any voxel's position."""
    try:
        _checks().check_grid(label.affine, label.shape, label_path, image.affine, image.shape, image_path)
    except ValueError as error:
        raise InputError(str(error)) from None


def save_nifti(array: np.ndarray, like: nib.Nifti1Image, path: Path, description: str = "") -> None:
    """Write an array atomically in the geometry of another image.

    Args:
        array: Voxels of shape (W, H, slices); their dtype is the file's.
        like: Image whose affine, orientation codes and units are kept.
        path: File to write, .nii or .nii.gz.
        description: Text for the header's ``descrip`` field (79 bytes at most).
    """
    header = like.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["descrip"] = description.encode()[:79]
    header["cal_min"] = header["cal_max"] = 0
    with atomic_file(path) as temporary:
        nib.save(nib.Nifti1Image(_checks().reordered(array, "F"), like.affine, header), temporary)


def spacing_mm(file: nib.Nifti1Image) -> list[float]:
    """Return the voxel size along each axis in mm."""
    return nib.affines.voxel_sizes(file.affine).tolist()


def relative(path: Path, start: Path) -> str:
    """Return ``path`` as seen from the folder ``start``, so that a project folder can be moved as a whole.

    Links among the folders are followed first: ``..`` behind a linked folder leads elsewhere. The file may be a link.
    """
    path = Path(path).absolute()
    return os.path.relpath(path.parent.resolve() / path.name, Path(start).resolve())


def canonical_image(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Return a volume with its axes turned and flipped to run right to left, back to front, foot to head (RAS)."""
    return nib.as_closest_canonical(nib.Nifti1Image(array, affine, dtype=array.dtype))


def canonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the voxels of :func:`canonical_image`."""
    return np.asarray(canonical_image(array, affine).dataobj)


def original(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo :func:`canonical` for a volume whose file has the given affine."""
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.io_orientation(affine))
    return nib.orientations.apply_orientation(array, back)


def canonical_spacing(file: nib.Nifti1Image) -> np.ndarray:
    """Return the voxel size in mm along the canonical axes."""
    return np.array(spacing_mm(file))[np.argsort(nib.io_orientation(file.affine)[:, 0])]


def axial_axis(affine: np.ndarray) -> int:
    """Return the axis of the stored voxels along which slices are axial.

    Example:
        >>> axial_axis(np.diag([1, 1, -5, 1])), axial_axis(np.eye(4)[[2, 0, 1, 3]])
        (2, 1)
    """
    return int(np.argmax(nib.io_orientation(affine)[:, 0]))


def slices_with(mask: np.ndarray, affine: np.ndarray, around: int = 0) -> tuple[slice, slice, slice] | None:
    """Return the whole axial slices from the first to the last that a mask fills, or None where it fills none.

    Args:
        mask: bool, shape (W, H, slices) or any order of these.
        affine: From its voxels to RAS in mm.
        around: Number of slices more on either side, as far as there are any.

    Example:
        >>> slices_with(np.arange(9).reshape(1, 1, 9) == 7, np.eye(4), around=2)
        (slice(0, 1, None), slice(0, 1, None), slice(5, 9, None))
    """
    axis = axial_axis(affine)
    held = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    if not len(held):
        return None
    box = [slice(0, size) for size in mask.shape]
    box[axis] = slice(max(0, int(held[0]) - around), min(mask.shape[axis], int(held[-1]) + 1 + around))
    return tuple(box)
