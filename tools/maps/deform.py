"""A lesion turned, scaled and bent, and how much of it two masks share."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from tools.maps.lesions import Lesion

SCALE = (0.8, 1.25)  # in the axial plane, of a lesion that is moved


@dataclass
class Deformation:
    """How a lesion is changed in its axial plane: ``bend`` is unit noise, shape (2, w, h), smoothed when applied."""

    angle: float
    scale: float
    mirror: float
    bend: np.ndarray


def draw_deformation(lesion: Lesion, spacing: np.ndarray, rng: np.random.Generator) -> Deformation:
    """Draw a turn (up to 25 degrees), a scale (SCALE), whether to mirror, and a bend, for a CT of a spacing in mm."""
    angle, scale = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(*SCALE)
    mirror = rng.choice([-1.0, 1.0])
    half = np.ceil(_radius_mm(lesion, scale) / spacing[:2]).astype(int) + 1
    return Deformation(angle, scale, mirror, rng.normal(size=(2, *(2 * half + 1))))


def _radius_mm(lesion: Lesion, scale: float) -> float:
    return np.linalg.norm((np.array(lesion.shape) * lesion.spacing)[:2]) / 2 * scale


def source_plane(lesion: Lesion, spacing: np.ndarray, deformation: Deformation) -> np.ndarray:
    """Return where in the lesion's slices each voxel of a deformed slice comes from: indices, shape (2, w, h).

    The deformation is of :func:`draw_deformation` with the same lesion and spacing (mm, of the CT that receives it).
    """
    angle, radius = deformation.angle, _radius_mm(lesion, deformation.scale)
    half = np.array(deformation.bend.shape[1:]) // 2
    grid = np.stack(np.mgrid[-half[0] : half[0] + 1, -half[1] : half[1] + 1]).astype(float)
    position = grid * spacing[:2, None, None]  # mm from the centre
    across, along = (smoothing(2 * int(size) + 1, max(size / 3, 1.0)) for size in half)
    bend = across @ deformation.bend @ along.T
    bend *= 0.12 * radius / max(np.abs(bend).max(), 1e-9)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / deformation.scale
    source = np.einsum("ij,jxy->ixy", turn, position + bend)
    source[0] *= deformation.mirror
    return source / lesion.spacing[:2, None, None] + (np.array(lesion.shape[:2])[:, None, None] - 1) / 2


@lru_cache(maxsize=128)
def smoothing(size: int, sigma: float) -> np.ndarray:
    """Return the matrix that smooths a line by a Gaussian: so wide a one takes far longer as a filter."""
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="nearest")


def deform(
    lesion: Lesion, spacing: np.ndarray, deformation: Deformation, with_hu: bool = True
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Turn, scale, mirror and bend a lesion in its axial plane; arguments as for :func:`source_plane`.

    Returns:
        Mask and, in it, HU (None if not wanted) in the receiving CT's voxels, shape (w, h, d), and the corner's offset
        from the lesion's centre.
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


def deform_values(lesion: Lesion, spacing: np.ndarray, deformation: Deformation, mask: np.ndarray) -> np.ndarray:
    """Return the tissue of each voxel of a deformed lesion of several tissues.

    Args:
        lesion: A lesion with ``values``.
        spacing: As for :func:`deform`.
        deformation: The same as was given to :func:`deform`.
        mask: What :func:`deform` returned, shape (w, h, d).

    Returns:
        Label values, uint8, shape (w, h, d), 0 outside the mask.
    """
    plane, answer = source_plane(lesion, spacing, deformation), np.zeros(mask.shape, np.uint8)
    for k in range(mask.shape[2]):
        donor = lesion.values[..., min(int((k + 0.5) / mask.shape[2] * lesion.shape[2]), lesion.shape[2] - 1)]
        if donor.any() and mask[..., k].any():
            near = ndimage.distance_transform_edt(donor == 0, return_distances=False, return_indices=True)
            points = plane[:, mask[..., k]]
            answer[mask[..., k], k] = ndimage.map_coordinates(donor[tuple(near)], points, order=0, mode="nearest")
    return answer


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
