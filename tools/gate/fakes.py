"""Tissue that looks right at one glance: what a gate must reject, made of real tissue in its own place."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

NOISE_HU, FAINT_HU = 60.0, 5.0  # deviation of white noise, and of what hides a constant
BLUR = 1.0  # voxels, of draws that are no longer white
REACH = 4  # voxels in-plane that the blur looks beyond the tissue
FAKES = ("constant", "faint_constant", "noise", "histogram_draws", "blurred_draws")


def fakes(
    hu: np.ndarray, where: np.ndarray, seed: int, box: tuple[slice, slice, slice] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each of ``FAKES`` and a CT whose tissue is replaced by it; what is around stays.

    - constant: the median of the tissue everywhere.
    - faint_constant, noise: the median with little and with much white noise.
    - histogram_draws: independent draws of the tissue's voxels, its histogram without its texture.
    - blurred_draws: such draws, blurred in-plane.

    Args:
        hu: CT in HU, shape (W, H, D).
        where: The tissue, bool, the same shape, not empty.
        seed: Seed for the draws.
        box: Part of the CT that is wanted; it holds the tissue and ``REACH`` voxels round it, and its voxels are the
            same as those of the whole CT, which is wanted if None.
    """
    box = box or tuple(slice(0, size) for size in hu.shape)
    tissue, shown, inside = hu[where], hu[box], where[box]

    def filled(values: np.ndarray) -> np.ndarray:
        return np.where(inside, values, shown).astype(np.float32)

    median = np.median(tissue)
    yield "constant", filled(np.full(shown.shape, median))
    white = _drawn(np.random.default_rng(seed).standard_normal, hu.shape, box)
    yield "faint_constant", filled(median + FAINT_HU * white)
    yield "noise", filled(median + NOISE_HU * white)
    rng = np.random.default_rng(seed)
    draws = _drawn(lambda shape: rng.choice(tissue, shape), hu.shape, box)
    yield "histogram_draws", filled(draws)
    yield "blurred_draws", filled(ndimage.gaussian_filter(draws.astype(np.float32), (BLUR, BLUR, 0)))


def _drawn(draw: Callable[[tuple], np.ndarray], shape: tuple, box: tuple[slice, slice, slice]) -> np.ndarray:
    """Return a box of what is drawn for a volume: plane after plane, so that the whole never lies in memory."""
    planes = (draw(shape[1:]) for _ in range(box[0].stop))
    return np.stack([plane[box[1:]] for x, plane in enumerate(planes) if x >= box[0].start])
