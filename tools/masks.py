"""New tissue maps for a CT: lesions of the training patients, moved, deformed and placed in plausible healthy lung.

Everything here works in voxels of canonical (RAS) orientation, so that left, front and top mean the same in every CT.
"""

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage

from tools.nifti import spacing_mm

MIN_LESION_VOXELS = 24
PLACES_TRIED = 12  # attempts to place one lesion before another is drawn
MIN_INSIDE = 0.6  # share of a placed lesion that must fall on healthy lung
MAX_HEALTHY_SHARE = 0.4  # of a CT's healthy lung that may be painted


@dataclass
class Lesion:
    """One connected lesion of a training patient.

    Attributes:
        case: the CT it comes from.
        tissue: its tissue's name.
        mask: its voxels, shape (w, h, d).
        hu: the CT around it, int16, the same shape.
        spacing: voxel size in mm.
        height: of its centre in the lung, 0 at the base and 1 at the apex.
        depth_mm: mean distance of its voxels from the pleura within their slices.
    """

    case: str
    tissue: str
    mask: np.ndarray
    hu: np.ndarray
    spacing: np.ndarray
    height: float
    depth_mm: float


@dataclass
class Host:
    """A CT that receives lesions, in canonical orientation.

    Attributes:
        label: tissue map, shape (W, H, D).
        hu: CT in HU, the same shape.
        spacing: voxel size in mm.
        healthy: value of healthy tissue.
        target: the map with the placed lesions.
        pasted: the CT with the donors' HU in the placed lesions.
        donors: per placed lesion, the donor's case, tissue and voxels.
    """

    label: np.ndarray
    hu: np.ndarray
    spacing: np.ndarray
    healthy: int
    target: np.ndarray = field(init=False)
    pasted: np.ndarray = field(init=False)
    donors: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target, self.pasted = self.label.copy(), self.hu.copy()
        self.depth_mm = pleura_distance(self.label > 0, self.spacing)
        self.height = lung_height(self.label > 0)
        self.room = int((self.label == self.healthy).sum() * MAX_HEALTHY_SHARE)

    def place(self, lesion: Lesion, value: int, rng: np.random.Generator) -> int:
        """Place one lesion, deformed, where height and distance to the pleura are like the donor's.

        Args:
            lesion: what to place.
            value: label value of its tissue.
            rng: source of randomness.

        Returns:
            Voxels painted, 0 if no place was found.
        """
        candidates = np.argwhere(self.target == self.healthy)
        if not len(candidates):
            return 0
        candidates = candidates[rng.integers(len(candidates), size=400)]
        depth = self.depth_mm[tuple(candidates.T)]
        unlike = np.abs(self.height[candidates[:, 2]] - lesion.height) / 0.15 + np.abs(depth - lesion.depth_mm) / 8.0
        likely = candidates[np.argsort(unlike, kind="stable")[:40]]
        for _ in range(PLACES_TRIED):
            centre = likely[rng.integers(len(likely))]
            mask, hu, corner = deform(lesion, self.spacing, rng)
            inside, window = overlap(mask.shape, corner + centre, self.target.shape)
            mask, hu = mask[window], hu[window]
            free = mask & (self.target[inside] == self.healthy)
            voxels = int(free.sum())
            if voxels < MIN_LESION_VOXELS or voxels < MIN_INSIDE * mask.sum() or voxels > self.room:
                continue
            self.target[inside][free] = value
            self.pasted[inside][free] = hu[free]
            self.room -= voxels
            self.donors.append({"case": lesion.case, "tissue": lesion.tissue, "voxels": voxels})
            return voxels
        return 0


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


def pleura_distance(lung: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return each lung voxel's distance in mm to the lung's border within its slice, shape (W, H, D)."""
    slices = [ndimage.distance_transform_edt(lung[..., k], sampling=spacing[:2]) for k in range(lung.shape[2])]
    return np.stack(slices, axis=-1).astype(np.float32)


def lung_height(lung: np.ndarray) -> np.ndarray:
    """Return each slice's height in the lung, 0 at the lowest and 1 at the highest, 0.5 in a single slice."""
    occupied = np.flatnonzero(lung.any(axis=(0, 1)))
    if len(occupied) < 2:
        return np.full(lung.shape[2], 0.5)
    return (np.arange(lung.shape[2]) - occupied[0]) / (occupied[-1] - occupied[0])


def find_lesions(
    case: str, label: np.ndarray, hu: np.ndarray, spacing: np.ndarray, tissues: dict[str, int]
) -> list[Lesion]:
    """Return the connected lesions of a CT.

    Args:
        case: its name.
        label: tissue map in canonical orientation, shape (W, H, D).
        hu: CT in HU, the same shape.
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
            centre = np.average(height[box[2]], weights=mask.sum(axis=(0, 1)))
            crop = hu[box].round().astype(np.int16)
            lesions.append(Lesion(case, tissue, mask, crop, spacing, float(centre), float(depth[box][mask].mean())))
    return lesions


def deform(lesion: Lesion, spacing: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn (up to 25 degrees), scale (0.8 to 1.25), mirror and bend a lesion in its axial plane.

    Args:
        lesion: the donor.
        spacing: voxel size in mm of the CT that receives it.
        rng: source of randomness.

    Returns:
        Mask and HU in the receiving CT's voxels, shape (w, h, d), and the corner's offset from the lesion's centre.
    """
    angle, scale = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(0.8, 1.25)
    mirror = rng.choice([-1.0, 1.0])
    extent = np.array(lesion.mask.shape) * lesion.spacing  # mm
    radius = np.linalg.norm(extent[:2]) / 2 * scale
    half = np.ceil(radius / spacing[:2]).astype(int) + 1
    depth = max(1, round(extent[2] / spacing[2]))
    grid = np.stack(np.mgrid[-half[0] : half[0] + 1, -half[1] : half[1] + 1]).astype(float)
    position = grid * spacing[:2, None, None]  # mm from the centre
    bend = rng.normal(size=grid.shape)
    smooth = np.maximum(half / 3, 1.0)
    bend = np.stack([ndimage.gaussian_filter(component, smooth, mode="nearest") for component in bend])
    bend *= 0.12 * radius / max(np.abs(bend).max(), 1e-9)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    source = np.einsum("ij,jxy->ixy", turn, position + bend)
    source[0] *= mirror
    index = source / lesion.spacing[:2, None, None] + (np.array(lesion.mask.shape[:2])[:, None, None] - 1) / 2
    masks, values = [], []
    for k in range(depth):
        donor = min(int((k + 0.5) / depth * lesion.mask.shape[2]), lesion.mask.shape[2] - 1)
        masks.append(ndimage.map_coordinates(lesion.mask[..., donor].astype(np.float32), index, order=1) > 0.5)
        values.append(ndimage.map_coordinates(lesion.hu[..., donor].astype(np.float32), index, order=1, mode="nearest"))
    corner = np.array([-half[0], -half[1], -(depth // 2)])
    return np.stack(masks, axis=-1), np.stack(values, axis=-1), corner


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
