"""Reading and writing CT and tissue maps, with the checks that keep wrong input out of the chain."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.io.dicom import find_series, read_series
from tools.io.files import InputError, atomic_file
from tools.tissues import unlabelled_value

# A CT in HU holds air: its darkest voxel lies near -1000. Pictures (0..255) and normalised images (0..1, -1..1) do not.
AIR_HU_AT_MOST = -500
SYNTHETIC_MARK = "SYNTHETIC"


def list_nifti(directory: Path) -> dict[str, Path]:
    """Return case name to path for the .nii and .nii.gz files of a folder, sorted by name; hidden files do not count.

    Raises:
        InputError: if the folder is missing, holds no NIfTI file, or holds one case as .nii and as .nii.gz.
    """
    cases = _by_name(directory, _nifti_files(directory))
    if not cases:
        raise InputError(f"{directory} holds no .nii or .nii.gz file")
    return cases


def list_cts(directory: Path) -> dict[str, Path]:
    """Return case name to path for the CTs of a folder, sorted by name: NIfTI files and folders with a DICOM series.

    A series' case has its folder's name. The folder itself counts if DICOM files lie in it; nothing is read yet.

    Raises:
        InputError: if the folder is missing, holds no CT, or holds one case twice.
    """
    files = _nifti_files(directory)
    cases = _by_name(directory, files + find_series(Path(directory).absolute()))
    if not cases:
        raise InputError(f"{directory} holds no .nii or .nii.gz file and no folder with a DICOM series")
    return cases


def _nifti_files(directory: Path) -> list[Path]:
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder" if directory.exists() else f"{directory} does not exist")
    return [
        path
        for path in directory.iterdir()  # ._case.nii.gz is macOS's, .partial-*.nii.gz is what a killed run of ours left
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".") and path.is_file()
    ]


def _by_name(directory: Path, paths: list[Path]) -> dict[str, Path]:
    cases: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.name):
        if case_name(path) in cases:
            raise InputError(f"{directory} holds both {cases[case_name(path)].name} and {path.name}; remove one")
        cases[case_name(path)] = path
    return cases


def case_name(path: Path) -> str:
    """Return the file name without .nii or .nii.gz.

    Example:
        >>> case_name("scans/case012.nii.gz")
        'case012'
    """
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def _load(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        file = read_series(path) if path.is_dir() else nib.load(path)
        array = np.asarray(file.dataobj)
    except InputError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each raise their own on a damaged file
        raise InputError(f"{path} cannot be read as NIfTI, it may be truncated: {error}") from None
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path} holds voxels of type {array.dtype}; expected one number per voxel")
    if array.ndim != 3:
        held, hint = f"{array.ndim}D with shape {array.shape}", _hint_3d(array.shape)
        raise InputError(f"{path} is {held}; expected one 3D volume (W, H, slices){hint}")
    if array.size == 0:
        raise InputError(f"{path} is empty: its shape is {array.shape}")
    if not np.isfinite(file.affine).all() or min(spacing_mm(file)) == 0:
        raise InputError(f"{path} has no usable affine: its voxel size is {spacing_mm(file)} mm")
    return array, file


def _hint_3d(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"; save the slice with shape {(*shape, 1)}"
    if len(shape) > 3 and set(shape[3:]) == {1}:
        return "; remove the last axis, which has length 1, with nibabel.squeeze_image"
    return "; save each volume as a case of its own" if len(shape) > 3 else ""


def load_ct(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Load a CT in HU.

    Args:
        path: NIfTI file, or folder that holds one DICOM series.

    Returns:
        HU as float32, shape (W, H, slices), and the nibabel image for its geometry.

    Raises:
        InputError: if the file or series cannot be read, is not 3D, holds NaN or infinity, or cannot be HU.
    """
    array, file = _load(path)
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds {np.count_nonzero(~np.isfinite(array))} NaN or infinite voxels")
    lowest, highest = float(array.min()), float(array.max())
    if lowest > AIR_HU_AT_MOST or highest <= lowest:
        raise InputError(
            f"{path} ranges from {lowest:g} to {highest:g}, which cannot be HU (air is -1000); "
            "8-bit pictures and normalised images must be converted to HU first"
        )
    return array, file


def load_labels(
    path: Path, labels: dict[str, int], foreign: dict[int, str] | None = None
) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Load a tissue map.

    Args:
        path: NIfTI file; whole numbers stored as floats are fine.
        labels: Tissue name to value; a value without a name is refused.
        foreign: Value in the file to tissue name, for a file of another label scheme; 0 is background unless it says
            otherwise.

    Returns:
        Label values of ``labels`` as int16, shape (W, H, slices), and the nibabel image for its geometry.

    Raises:
        InputError: if the file cannot be read, is not 3D, or holds a value that is no integer or has no name.
    """
    array, file = _load(path)
    values = np.unique(array)
    not_integer = [float(value) for value in values if not np.isfinite(value) or value != np.round(value)]
    if not_integer:
        raise InputError(f"{path} holds label {not_integer[0]:g}, but labels must be integers")
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
        return array.astype(np.int16), file
    mapped = np.zeros(array.shape, np.int16)
    for value in values:
        mapped[array == value] = labels[names[int(value)]]
    return mapped, file


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
    _, file = _load(path)
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


def check_same_geometry(image: nib.Nifti1Image, label: nib.Nifti1Image, image_path: Path, label_path: Path) -> None:
    """Raise InputError if two files differ in shape or by more than 0.01 mm in any voxel's position."""
    if image.shape != label.shape:
        raise InputError(f"{label_path} has shape {label.shape}, but {image_path} has {image.shape}")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(image.shape) - 1
    shift = np.abs(corners @ (image.affine - label.affine).T).max()
    if shift > 0.01:
        raise InputError(f"{label_path} has another affine than {image_path} (voxels lie up to {shift:.3g} mm apart)")


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
        nib.save(nib.Nifti1Image(array, like.affine, header), temporary)


def spacing_mm(file: nib.Nifti1Image) -> list[float]:
    """Return the voxel size along each axis in mm."""
    return [float(size) for size in np.sqrt((file.affine[:3, :3] ** 2).sum(axis=0))]


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
