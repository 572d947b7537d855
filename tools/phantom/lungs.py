"""The lungs of a real CT by HU alone: which voxels disease may be drawn into."""

import numpy as np
from scipy import ndimage

AIR_HU = -400.0  # halfway between lung and soft tissue
LUMEN_HU = -925.0  # trachea and main bronchi hold air and nothing else
SMOOTH_MM = 1.0
LUMEN_MM2 = (12.0, 1200.0)  # cross-section of a lumen in one slice
WALLED = 0.75  # share of a lumen's surroundings that is no lung, from which it lies in the mediastinum
LEAST_ML = 15.0  # of one connected piece of lung
LUNG_HU = (-972.0, -500.0)  # median of a piece; air outside the body and in the bowel lies lower
VESSEL_MM = 5.0  # vessels up to twice as wide are part of the lung


def lung_mask(hu: np.ndarray, voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """Find the lungs with their vessels, without trachea, main bronchi and mediastinum.

    Lung that is as dense as the chest wall cannot be told from it by HU and stays outside.

    Args:
        hu: CT in HU, shape (W, H, slices), the first two axes axial.
        voxel_mm: size of a voxel.

    Returns:
        bool, shape as ``hu``; all False where no lung is found.
    """
    in_plane = (SMOOTH_MM / voxel_mm[0], SMOOTH_MM / voxel_mm[1], 0)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), in_plane, mode="nearest")
    air = smooth < AIR_HU
    pixel_mm2 = voxel_mm[0] * voxel_mm[1]
    for k in range(hu.shape[2]):
        air[:, :, k] &= ~_outside_body(air[:, :, k])
        air[:, :, k] &= ~_walled_lumens(smooth[:, :, k], air[:, :, k], voxel_mm[:2], pixel_mm2)
    air = ndimage.binary_opening(air, np.ones((2, 2, 1), bool))
    pieces, count = ndimage.label(air)
    lung = np.zeros(hu.shape, bool)
    if not count:
        return lung
    volume_ml = np.bincount(pieces.ravel(), minlength=count + 1) * float(np.prod(voxel_mm)) / 1000
    for piece in np.flatnonzero(volume_ml >= LEAST_ML):
        if piece and LUNG_HU[0] < np.median(smooth[pieces == piece][::7]) < LUNG_HU[1]:
            lung |= pieces == piece
    for k in np.flatnonzero(lung.any((0, 1))):
        lung[:, :, k] = _with_vessels(lung[:, :, k], smooth[:, :, k], voxel_mm[:2])
    return lung


def _outside_body(air: np.ndarray) -> np.ndarray:
    """Return the air of one slice that reaches the border of the picture."""
    pieces, _ = ndimage.label(air)
    border = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    return np.isin(pieces, border[border > 0])


def _walled_lumens(smooth: np.ndarray, air: np.ndarray, pixel_mm: tuple, pixel_mm2: float) -> np.ndarray:
    """Return the lumens of one slice that soft tissue surrounds, and their walls' inner edge."""
    found = np.zeros(air.shape, bool)
    pieces, count = ndimage.label(smooth < LUMEN_HU)
    if not count:
        return found
    area_mm2 = np.bincount(pieces.ravel(), minlength=count + 1) * pixel_mm2
    reach = max(2, round(2.5 / pixel_mm[0]))
    boxes = ndimage.find_objects(pieces)
    for piece in np.flatnonzero((area_mm2 >= LUMEN_MM2[0]) & (area_mm2 <= LUMEN_MM2[1])):
        if not piece:
            continue
        box = tuple(slice(max(0, part.start - 3 * reach), part.stop + 3 * reach) for part in boxes[piece - 1])
        lumen = pieces[box] == piece
        edge = ndimage.binary_dilation(lumen, iterations=reach)
        ring = ndimage.binary_dilation(edge, iterations=1) & ~edge
        if (smooth[box][ring] > -600).mean() > WALLED:
            found[box] |= edge
    return found & air


def _with_vessels(lung: np.ndarray, smooth: np.ndarray, pixel_mm: tuple) -> np.ndarray:
    """Return one slice of the lungs closed over the vessels, each half of the chest for itself."""
    margins = [round(2 * VESSEL_MM / size) + 1 for size in pixel_mm]
    box = tuple(
        slice(max(0, part.start - margin), part.stop + margin)
        for part, margin in zip(ndimage.find_objects(lung.view(np.uint8))[0], margins)
    )
    inner = lung[box]
    closed = np.zeros(inner.shape, bool)
    for half in (slice(0, inner.shape[0] // 2), slice(inner.shape[0] // 2, None)):
        part = np.zeros(inner.shape, bool)
        part[half] = inner[half]
        if part.any():
            near = ndimage.distance_transform_edt(~part, sampling=pixel_mm) < VESSEL_MM
            closed |= ndimage.binary_fill_holes(ndimage.distance_transform_edt(near, sampling=pixel_mm) >= VESSEL_MM)
    answer = lung.copy()
    answer[box] |= closed & (smooth[box] > AIR_HU) & (smooth[box] < 300)
    return answer
