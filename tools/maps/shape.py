"""What is measured of a lesion's size, shape and place: bank and data are compared by it, new lesions drawn from it."""

import numpy as np

# An ellipsoid of standard deviations s1, s2, s3 has the volume 4/3 pi 5^(3/2) s1 s2 s3.
ELLIPSOID = 4 / 3 * np.pi * 5**1.5


def spreads_mm(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return how far a mask, shape (w, h, d) and not empty, spreads in its axial plane and across slices.

    That is the standard deviations in mm of its volume along its long and its short axis in the axial plane and along
    the third axis, shape (3,). A voxel counts as a block, not as a point.
    """
    position = np.argwhere(mask) * spacing
    covariance = np.cov(position[:, :2].T, bias=True) + np.diag(spacing[:2] ** 2 / 12)
    across = position[:, 2].var() + spacing[2] ** 2 / 12
    return np.sqrt([*np.linalg.eigvalsh(covariance)[::-1], across])


def measures(mask: np.ndarray, depth_mm: np.ndarray, height: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Return a lesion's size, shape and place.

    ``mask`` and ``depth_mm`` (to the pleura within the slice) have the shape (w, h, d), ``height`` of each slice in the
    lung, 0 at the base and 1 at the apex, (d,).

    Returns:
        ``volume_ml``; ``depth_mm`` and ``depth_spread_mm``, mean and standard deviation of its voxels' distance to the
        pleura; ``height``, mean over its voxels; ``elongation``, long over short axis in the axial plane;
        ``flatness``, extent across slices over that in the plane; ``fullness``, its volume over that of the ellipsoid
        of the same spread: 1 if it is one, less if it is bent, ragged or hollow.
    """
    volume = float(mask.sum() * np.prod(spacing))
    inside = depth_mm[mask]
    long, short, across = spreads_mm(mask, spacing)
    return {
        "volume_ml": volume / 1000,
        "depth_mm": float(inside.mean()),
        "depth_spread_mm": float(inside.std()),
        "height": float(np.average(height, weights=mask.sum(axis=(0, 1)))),
        "elongation": float(long / short),
        "flatness": float(across / np.sqrt(long * short)),
        "fullness": float(volume / (ELLIPSOID * long * short * across)),
    }
