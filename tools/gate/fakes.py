"""Tissue that looks right at one glance: what a gate must reject, made of real tissue in its own place."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

NOISE_HU, FAINT_HU = 60.0, 5.0  # deviation of white noise, and of what hides a constant
BLUR = 1.0  # voxels, of draws that are no longer white


def constant(hu: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the median of the tissue everywhere."""
    return np.full(hu.shape, np.median(hu[where]))


def faint_constant(hu: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the median with little white noise."""
    return np.median(hu[where]) + FAINT_HU * rng.standard_normal(hu.shape)


def noise(hu: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the median with much white noise."""
    return np.median(hu[where]) + NOISE_HU * rng.standard_normal(hu.shape)


def histogram_draws(hu: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return independent draws of the tissue's voxels: its histogram without its texture."""
    return rng.choice(hu[where], hu.shape)


def blurred_draws(hu: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return draws of the tissue's voxels, blurred in-plane."""
    return ndimage.gaussian_filter(histogram_draws(hu, where, rng).astype(np.float32), (BLUR, BLUR, 0))


FAKES: dict[str, Callable] = {
    fake.__name__: fake for fake in (constant, faint_constant, noise, histogram_draws, blurred_draws)
}


def fill(name: str, hu: np.ndarray, where: np.ndarray, seed: int) -> np.ndarray:
    """Return a CT whose tissue is replaced by a fake; what is around stays.

    Args:
        name: One of ``FAKES``.
        hu: CT in HU, shape (W, H, D).
        where: The tissue, bool, the same shape, not empty.
        seed: Seed for the draws.
    """
    filled = FAKES[name](hu, where, np.random.default_rng(seed))
    return np.where(where, filled, hu).astype(np.float32)
