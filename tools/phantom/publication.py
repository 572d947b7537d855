"""A CT as published pictures show it: cut to the lungs and enlarged, clipped to a window, sharpened, blurred, noisy."""

import dataclasses

import numpy as np
from scipy import ndimage

PLACEHOLDER_MM = 1.0  # a picture's pixels have no size
LUNG_WIDTH_PIXELS = (270, 460)
MARGIN_MM = (-6.0, 30.0)
LOW_HU, HIGH_HU = (-1250.0, -960.0), (20.0, 320.0)
GREYS = 255


@dataclasses.dataclass(frozen=True)
class Look:
    """What was done to a CT, for its provenance.

    Attributes:
        framed: factor by which the lungs were enlarged after cutting; 1 where the field of view was left as it is.
        window_hu: lowest and highest HU that were kept; None where nothing was clipped.
        scale: factor on HU, from calibration of the picture's greys.
        shift_hu: added to HU after it.
        blur_pixels: standard deviation of the blur, 0 for none.
        sharpen: weight of the unsharp mask, 0 for none.
        noise_hu: standard deviation of the added noise, 0 for none.
    """

    framed: float
    window_hu: tuple[float, float] | None
    scale: float
    shift_hu: float
    blur_pixels: float
    sharpen: float
    noise_hu: float


def change_look(
    rng: np.random.Generator, hu: np.ndarray, label: np.ndarray, voxel_mm: tuple, framed: float, windowed: float
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice], tuple[float, float, float], Look]:
    """Change how a CT looks, at random; what it shows stays.

    Args:
        rng: source of all draws.
        hu: CT in HU, shape (W, H, slices).
        label: label values of the same shape, 0 outside the lungs.
        voxel_mm: size of a voxel.
        framed: probability of cutting to the lungs and enlarging them.
        windowed: probability of clipping HU to a window of 255 greys.

    Returns:
        HU and label values, the part of the first two axes that was kept, the new voxel size and what was done.
    """
    keep, factor = (slice(0, hu.shape[0]), slice(0, hu.shape[1])), 1.0
    if rng.random() < framed:
        keep, factor = _frame(rng, label, voxel_mm)
        hu, label = hu[keep], label[keep]
        hu = ndimage.zoom(hu, (factor, factor, 1), order=1)
        label = ndimage.zoom(label, (factor, factor, 1), order=0)
        voxel_mm = (PLACEHOLDER_MM, PLACEHOLDER_MM, voxel_mm[2])
    blur = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.25 else 0.0
    sharpen = float(rng.uniform(0.3, 1.5)) if rng.random() < 0.25 else 0.0
    noise_hu = float(rng.uniform(5, 160)) if rng.random() < 0.4 else 0.0
    if blur:
        hu = ndimage.gaussian_filter(hu, (blur, blur, 0))
    if sharpen:
        hu = hu + sharpen * (hu - ndimage.gaussian_filter(hu, (1.2, 1.2, 0)))
    if noise_hu:
        coarse = rng.uniform(0.4, 1.0)
        grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (coarse, coarse, 0))
        hu = hu + noise_hu * grain / grain.std()
    window, scale, shift = None, 1.0, 0.0
    if rng.random() < windowed:
        window = (float(rng.uniform(*LOW_HU)), float(rng.uniform(*HIGH_HU)))
        scale, shift = float(rng.uniform(0.93, 1.07)), float(rng.normal(0, 20))
        step = (window[1] - window[0]) / GREYS
        hu = np.rint((np.clip(hu, *window) - window[0]) / step) * step + window[0]
        hu = hu * scale + shift
    return hu, label, keep, voxel_mm, Look(factor, window, scale, shift, blur, sharpen, noise_hu)


def _frame(rng: np.random.Generator, label: np.ndarray, voxel_mm: tuple) -> tuple[tuple[slice, slice], float]:
    """Return a part of the first two axes that holds the lungs, and the factor that enlarges them to a picture."""
    part = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    kept = []
    for axis in (0, 1):
        low, high = (round(float(margin) / voxel_mm[axis]) for margin in rng.uniform(*MARGIN_MM, 2))
        kept.append(slice(max(0, part[axis].start - low), min(label.shape[axis], part[axis].stop + high)))
    width = part[0].stop - part[0].start
    return tuple(kept), float(rng.uniform(*LUNG_WIDTH_PIXELS)) / width
