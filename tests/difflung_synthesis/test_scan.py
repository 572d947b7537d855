"""Sharpness and voxel size of a CT are measured, and told beside the attributes."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from scripts.scan import TYPICAL_HU, TYPICAL_MM, MeasureScand, append_scan, check_voxel_mm, sharpness_hu, withhold_scan
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
    image = MetaTensor(hu[None], affine=torch.diag(torch.tensor([-0.4, 0.4, 5.0, 1.0])))
    told = [MeasureScand("image", "target")({"image": image, "target": map_})["scan"] for map_ in maps]
    assert told[0].tolist() == told[1].tolist()
    assert told[0] == pytest.approx([math.log2(sharpness_hu(hu, lung) / TYPICAL_HU), math.log2(0.4 / TYPICAL_MM)])
    nothing = MeasureScand("image", "target")({"image": hu[None], "target": torch.zeros(1, *hu.shape)})
    assert np.isnan(nothing["scan"]).all()


def test_what_cannot_be_measured_is_unknown():
    attributes = torch.ones(2, 3)
    told = append_scan(attributes, torch.tensor([[0.5, math.nan], [math.nan, -1.0]]))
    assert told.tolist() == [[1, 1, 1, 1, 0.5, 0, 0], [1, 1, 1, 0, 0, 1, -1]]
    assert not append_scan(attributes, None)[:, 3:].any()


def test_either_is_withheld_now_and_then_and_the_patient_never():
    torch.manual_seed(0)
    kept = withhold_scan(append_scan(torch.ones(2000, 3), torch.full((2000, 2), 0.5)))
    assert (kept[:, :3] == 1).all()
    for known, value in ((kept[:, 3], kept[:, 4]), (kept[:, 5], kept[:, 6])):
        assert torch.equal(value, 0.5 * known) and 0.05 < (known == 0).float().mean() < 0.15
    assert not torch.equal(kept[:, 3], kept[:, 5])


def test_voxels_of_another_size_than_the_training_ones_are_refused():
    def told(size_mm):
        return append_scan(torch.zeros(1, 0), torch.tensor([[math.nan, math.log2(size_mm / TYPICAL_MM)]]))[0]

    trained = torch.tensor([0.6, 1.4])
    check_voxel_mm(told(0.56), trained)
    check_voxel_mm(told(2.2), torch.zeros(2))  # weights that do not know
    check_voxel_mm(append_scan(torch.zeros(1, 0), None)[0], trained)
    with pytest.raises(
        ValueError, match=r"voxels are 2.20 mm wide.* 0.60 to 1.40 mm.*spacing_mm to \[1.40, 1.40, -1\]"
    ):
        check_voxel_mm(told(2.2), trained)
    with pytest.raises(ValueError, match=r"spacing_mm to \[0.60, 0.60, -1\]"):
        check_voxel_mm(told(0.4), trained)
