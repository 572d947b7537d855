"""The sharpness of a CT is measured in its lung, and told beside the attributes."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scripts.sharpness import TYPICAL_HU, MeasureSharpnessd, append_sharpness, sharpness_hu
from scripts.tissue_channels import UNKNOWN


def ct(sigma, seed=0, size=(40, 36, 6)):
    """Return noise of 30 HU, smoothed in the axial plane, and a lung that fills half of it."""
    noise = np.random.default_rng(seed).normal(0, 30, size)
    hu = gaussian_filter(noise, (sigma, sigma, 0)) - 850
    lung = torch.zeros(size, dtype=torch.bool)
    lung[5:30, 5:25, 1:] = True
    return torch.from_numpy(hu).float(), lung


def test_white_noise_has_the_known_median():
    """x_(i-1) - 2 x_i + x_(i+1) is normal with deviation sqrt(6) d; the median of its size is .6745 of that."""
    assert sharpness_hu(*ct(0)) == pytest.approx(0.6745 * math.sqrt(6) * 30, rel=0.05)


def test_only_the_lung_and_not_its_borders_counts():
    hu, lung = ct(0.8)
    inside = sharpness_hu(hu, lung)
    outside = torch.where(lung, hu, 1000 * torch.randn(hu.shape))
    assert sharpness_hu(outside, lung) == inside < 0.5 * sharpness_hu(*ct(0))
    assert math.isnan(sharpness_hu(hu, torch.zeros_like(lung)))
    assert math.isnan(sharpness_hu(hu[:2, :2], lung[:2, :2] | True))  # too small for a second difference


def test_item_gets_the_logarithm_and_unknown_tissue_is_lung():
    hu, lung = ct(0)
    maps = [torch.where(lung, value, 0)[None].float() for value in (3, UNKNOWN)]
    told = [MeasureSharpnessd("image", "target")({"image": hu[None], "target": map_})["sharpness"] for map_ in maps]
    assert told[0] == told[1] == pytest.approx(math.log2(sharpness_hu(hu, lung) / TYPICAL_HU))
    nothing = MeasureSharpnessd("image", "target")({"image": hu[None], "target": torch.zeros(1, *hu.shape)})
    assert math.isnan(nothing["sharpness"])


def test_what_cannot_be_measured_is_unknown():
    attributes = torch.ones(2, 3)
    assert append_sharpness(attributes, torch.tensor([0.5, math.nan])).tolist() == [[1, 1, 1, 1, 0.5], [1, 1, 1, 0, 0]]
    assert append_sharpness(attributes, None)[:, 3:].tolist() == [[0, 0], [0, 0]]
