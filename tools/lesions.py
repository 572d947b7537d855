"""Lesions of the training patients: found in their tissue maps, measured, and deformed to be moved.

Everything here works in voxels of canonical (RAS) orientation, so that left, front and top mean the same in every CT.
"""

import zlib
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tools.extents import pleura_distance
from tools.lesion_shape import measures
from tools.nifti import case_name, check_same_geometry, load_ct, load_labels, spacing_mm
from tools.scheme import pathological_tissues, tissue_labels

MIN_LESION_VOXELS = 24
SCALE = (0.8, 1.25)  # in the axial plane, of a lesion that is moved


class Lesion:
    """One connected lesion of a training patient; its arrays are kept compressed, since a bank holds thousands.

    Args:
        case: the CT it comes from.
        tissue: its tissue's name.
        mask: its voxels, shape (w, h, d).
        hu: the CT around it, int16, the same shape, or None; kept in the mask and next to it within the slice.
        spacing: voxel size in mm.
        measures: size, shape and place, of ``lesion_shape.measures``.
    """

    def __init__(
        self,
        case: str,
        tissue: str,
        mask: np.ndarray,
        hu: np.ndarray | None,
        spacing: np.ndarray,
        measures: dict[str, float],
    ) -> None:
        self.case, self.tissue, self.spacing, self.measures, self.shape = case, tissue, spacing, measures, mask.shape
        self._mask = zlib.compress(mask.tobytes(), 1)
        near = None if hu is None else ndimage.binary_dilation(mask, np.ones((3, 3, 1)))
        self._hu = None if hu is None else zlib.compress(np.where(near, hu, 0).astype(np.int16).tobytes(), 1)

    @property
    def mask(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self._mask), bool).reshape(self.shape)

    @property
    def hu(self) -> np.ndarray | None:
        return None if self._hu is None else np.frombuffer(zlib.decompress(self._hu), np.int16).reshape(self.shape)


def canonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a volume with its axes turned and flipped to run right to left, back to front, foot to head (RAS)."""
    return nib.orientations.apply_orientation(array, nib.io_orientation(affine))


def original(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo :func:`canonical` for a volume whose file has the given affine."""
    to_canonical = nib.io_orientation(affine)
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    return nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(ras, to_canonical))


def canonical_spacing(file: nib.Nifti1Image) -> np.ndarray:
    """Return the voxel size in mm along the canonical axes."""
    spacing = np.zeros(3)
    for axis, (out, _) in enumerate(nib.io_orientation(file.affine)):
        spacing[int(out)] = spacing_mm(file)[axis]
    return spacing


def lung_height(lung: np.ndarray) -> np.ndarray:
    """Return each slice's height in the lung, 0 at the lowest and 1 at the highest, 0.5 in a single slice."""
    occupied = np.flatnonzero(lung.any(axis=(0, 1)))
    if len(occupied) < 2:
        return np.full(lung.shape[2], 0.5)
    return (np.arange(lung.shape[2]) - occupied[0]) / (occupied[-1] - occupied[0])


def find_lesions(
    case: str, label: np.ndarray, hu: np.ndarray | None, spacing: np.ndarray, tissues: dict[str, int]
) -> list[Lesion]:
    """Return the connected lesions of a CT.

    Args:
        case: its name.
        label: tissue map in canonical orientation, shape (W, H, D).
        hu: CT in HU, the same shape; None if the lesions shall carry none.
        spacing: voxel size in mm.
        tissues: pathological tissue name to value.
    """
    depth, height = pleura_distance(label > 0, spacing), lung_height(label > 0)
    lesions = []
    for tissue, value in tissues.items():
        parts, _ = ndimage.label(label == value)
        for index, box in enumerate(ndimage.find_objects(parts), start=1):
            mask = parts[box] == index
            if mask.sum() < MIN_LESION_VOXELS:
                continue
            crop = None if hu is None else hu[box].round().astype(np.int16)
            measured = measures(mask, depth[box], height[box[2]], spacing)
            lesions.append(Lesion(case, tissue, mask, crop, spacing, measured))
    return lesions


@dataclass
class Deformation:
    """How a lesion is changed in its axial plane: ``bend`` is unit noise, shape (2, w, h), smoothed when applied."""

    angle: float
    scale: float
    mirror: float
    bend: np.ndarray


def draw_deformation(lesion: Lesion, spacing: np.ndarray, rng: np.random.Generator) -> Deformation:
    """Draw a turn (up to 25 degrees), a scale (0.8 to 1.25), whether to mirror, and a bend.

    Args:
        lesion: the donor.
        spacing: voxel size in mm of the CT that receives it.
        rng: source of randomness.
    """
    angle, scale = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(*SCALE)
    mirror = rng.choice([-1.0, 1.0])
    half = np.ceil(_radius_mm(lesion, scale) / spacing[:2]).astype(int) + 1
    return Deformation(angle, scale, mirror, rng.normal(size=(2, *(2 * half + 1))))


def _radius_mm(lesion: Lesion, scale: float) -> float:
    return np.linalg.norm((np.array(lesion.shape) * lesion.spacing)[:2]) / 2 * scale


def source_plane(lesion: Lesion, spacing: np.ndarray, deformation: Deformation) -> np.ndarray:
    """Return where in the lesion's slices each voxel of a deformed slice comes from: indices, shape (2, w, h).

    Args:
        lesion: the donor.
        spacing: voxel size in mm of the CT that receives it.
        deformation: from :func:`draw_deformation` with the same lesion and spacing.
    """
    angle, radius = deformation.angle, _radius_mm(lesion, deformation.scale)
    half = np.array(deformation.bend.shape[1:]) // 2
    grid = np.stack(np.mgrid[-half[0] : half[0] + 1, -half[1] : half[1] + 1]).astype(float)
    position = grid * spacing[:2, None, None]  # mm from the centre
    smooth = np.maximum(half / 3, 1.0)
    bend = np.stack([ndimage.gaussian_filter(component, smooth, mode="nearest") for component in deformation.bend])
    bend *= 0.12 * radius / max(np.abs(bend).max(), 1e-9)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / deformation.scale
    source = np.einsum("ij,jxy->ixy", turn, position + bend)
    source[0] *= deformation.mirror
    return source / lesion.spacing[:2, None, None] + (np.array(lesion.shape[:2])[:, None, None] - 1) / 2


def deform(
    lesion: Lesion, spacing: np.ndarray, deformation: Deformation, with_hu: bool = True
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Turn, scale, mirror and bend a lesion in its axial plane.

    Args:
        lesion: the donor.
        spacing: voxel size in mm of the CT that receives it.
        deformation: from :func:`draw_deformation` with the same lesion and spacing.
        with_hu: whether its HU are wanted too.

    Returns:
        Mask and, in it, HU (or None) in the receiving CT's voxels, shape (w, h, d), and the corner's offset from the
        lesion's centre.
    """
    plane = source_plane(lesion, spacing, deformation)
    size, depth = plane.shape[1:], max(1, round(lesion.shape[2] * lesion.spacing[2] / spacing[2]))
    donors = [min(int((k + 0.5) / depth * lesion.shape[2]), lesion.shape[2] - 1) for k in range(depth)]
    donor_mask = np.moveaxis(lesion.mask, 2, 0)
    touched = ndimage.map_coordinates(donor_mask.any(axis=0).astype(np.float32), plane, order=1) > 0.5
    donor_share, points = donor_mask.astype(np.float32), plane[:, touched]
    mask = np.zeros((depth, *size), bool)
    for k, donor in enumerate(donors):
        mask[k, touched] = ndimage.map_coordinates(donor_share[donor], points, order=1) > 0.5
    hu = None
    if with_hu:
        hu, donor_hu = np.zeros(mask.shape, np.float32), np.moveaxis(lesion.hu, 2, 0).astype(np.float32)
        for k, donor in enumerate(donors):
            hu[k, mask[k]] = ndimage.map_coordinates(donor_hu[donor], plane[:, mask[k]], order=1, mode="nearest")
        hu = np.moveaxis(hu, 0, 2)
    mask = np.moveaxis(mask, 0, 2)
    return mask, hu, np.array([-(size[0] // 2), -(size[1] // 2), -(depth // 2)])


def overlap(shape: tuple, corner: np.ndarray, room: tuple) -> tuple[tuple, tuple]:
    """Return where a block that begins at ``corner`` lies in an array of shape ``room``, and which part of it that is.

    Example:
        >>> overlap((4,), np.array([-1]), (10,))
        ((slice(0, 3, None),), (slice(1, 4, None),))
    """
    first, last = np.maximum(corner, 0), np.minimum(corner + np.array(shape), room)
    last = np.maximum(first, last)
    inside = tuple(slice(int(a), int(b)) for a, b in zip(first, last))
    window = tuple(slice(int(a - c), int(b - c)) for a, b, c in zip(first, last, corner))
    return inside, window


def load_case(item: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tissue map, HU and spacing in mm of a datalist item, in canonical orientation."""
    hu, image = load_ct(item["image"])
    label, label_image = load_labels(item["label"], tissue_labels())
    check_same_geometry(image, label_image, item["image"], item["label"])
    return canonical(label, image.affine), canonical(hu, image.affine), canonical_spacing(image)


def lesion_bank(training: list[dict], with_hu: bool = False) -> tuple[dict[str, list[Lesion]], dict[str, list[float]]]:
    """Return the lesions per tissue, and the volume in ml per tissue and case that has it (empty if none).

    Args:
        training: datalist items with absolute paths.
        with_hu: whether the lesions shall carry their HU.
    """
    labels = tissue_labels()
    tissues = {tissue: labels[tissue] for tissue in pathological_tissues()}
    bank: dict[str, list[Lesion]] = {}
    volumes: dict[str, list[float]] = {tissue: [] for tissue in tissues}
    for item in tqdm(training, desc="collecting lesions", unit="case"):
        label, hu, spacing = load_case(item)
        for lesion in find_lesions(case_name(item["image"]), label, hu if with_hu else None, spacing, tissues):
            bank.setdefault(lesion.tissue, []).append(lesion)
        for tissue, value in tissues.items():
            voxels = int((label == value).sum())
            if voxels:
                volumes[tissue].append(voxels * float(np.prod(spacing)) / 1000)
    return bank, volumes
