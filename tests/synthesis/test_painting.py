"""Painting: only the region changes, windows leave no seams, and a case's noise is its own."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.cases import painting_cases
from scripts.painting import PaintInferer, PaintRegiond, PasteRegiond

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


def volume(size=(100, 90, 3)):
    """A CT in [-1, 1], its target map, and a region larger than a window, in the two outer slices."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((1, 1, *size), generator=generator) * 2 - 1
    target = torch.ones((1, 1, *size))
    region = torch.zeros((1, 1, *size))
    region[:, :, 5:95, 20:85, 0::2] = 1
    target[region > 0] = 2
    return image, target, region


def pointwise(stacked, t):
    """Stand-in for the network: a velocity that depends on each voxel alone, so windows cannot matter."""
    return 0.5 * stacked[:, :1] + stacked[:, 3:4] - t.view(-1, 1, 1, 1)


def test_outside_the_region_every_voxel_is_the_inputs():
    image, target, region = volume()
    painted = PaintInferer(LABELS, patch_size=32, num_steps=2)(image, pointwise, target, region, [0])
    assert torch.equal(painted[region == 0], image[region == 0])
    assert (painted[region > 0] != image[region > 0]).float().mean() > 0.99


def test_windows_leave_no_trace_where_the_velocity_is_local():
    image, target, region = volume()
    small = PaintInferer(LABELS, patch_size=32, num_steps=3, overlap=0.5)(image, pointwise, target, region, [0])
    whole = PaintInferer(LABELS, patch_size=128, num_steps=3, overlap=0.5)(image, pointwise, target, region, [0])
    assert torch.allclose(small, whole, atol=1e-5)


def test_painting_does_not_depend_on_batches():
    image, target, region = volume()
    results = [
        PaintInferer(LABELS, 32, 2, sw_batch_size=batch, slices_per_pass=slices)(image, pointwise, target, region, [0])
        for batch, slices in ((1, 16), (64, 1))
    ]
    assert torch.allclose(*results, atol=1e-6)


def test_seed_belongs_to_the_volume():
    image, target, region = volume()
    both = [torch.cat([v, v]) for v in (image, target, region)]
    inferer = PaintInferer(LABELS, 32, 1)
    first, second = inferer(both[0], pointwise, both[1], both[2], [7, 8])
    alone = inferer(image, pointwise, target, region, [8])
    assert torch.equal(second, alone[0])
    assert not torch.equal(first, second)


def test_metadata_by_which_the_result_is_turned_back_is_kept():
    image, target, region = volume()
    affine = torch.diag(torch.tensor([-2.0, 2.0, 5.0, 1.0])).double()
    painted = PaintInferer(LABELS, 32, 1)(MetaTensor(image, affine=affine), pointwise, target, region, [0])
    assert torch.equal(painted.affine, affine)
    assert torch.equal(painted.as_tensor(), PaintInferer(LABELS, 32, 1)(image, pointwise, target, region, [0]))


def test_image_smaller_than_a_window():
    image, target, region = (v[:, :, :20, :27] for v in volume())
    painted = PaintInferer(LABELS, patch_size=32, num_steps=1)(image, pointwise, target, region, [0])
    assert painted.shape == image.shape
    assert torch.equal(painted[region == 0], image[region == 0])


@pytest.mark.parametrize("corner", [0, 68, 40])
def test_windows_cover_the_region_and_touch_it(corner):
    region = torch.zeros(100, 100)
    region[corner : corner + 32, corner] = 1
    region[corner, corner : corner + 32] = 1
    inferer = PaintInferer(LABELS, patch_size=24)
    covered = torch.zeros(100, 100)
    for i, j in inferer.window_corners(region):
        assert 0 <= i <= 76 and 0 <= j <= 76
        assert region[i : i + 24, j : j + 24].any()
        covered[i : i + 24, j : j + 24] = 1
    assert covered[region > 0].all()


def test_overlap_out_of_range_is_refused():
    with pytest.raises(ValueError, match="overlap must be at least 0 and below 1, not 1"):
        PaintInferer(LABELS, overlap=1)


def sample():
    affine = torch.eye(4, dtype=torch.float64)
    image = MetaTensor(torch.zeros(1, 4, 4, 2), affine=affine, meta={"filename_or_obj": "ct.nii.gz"})
    label = MetaTensor(torch.ones(1, 4, 4, 2), affine=affine, meta={"filename_or_obj": "map.nii.gz"})
    label[:, 0] = 0
    target = MetaTensor(label.clone(), affine=affine, meta={"filename_or_obj": "target.nii.gz"})
    target[:, 2, 1:3] = 2
    return {"image": image, "label": label, "target": target}


def test_region_is_the_difference():
    data = PaintRegiond("target", LABELS)(sample())
    assert torch.equal(data["region"].as_tensor() > 0, data["target"].as_tensor() != data["label"].as_tensor())


def test_repaint_takes_tissue_that_did_not_change():
    data = sample()
    data["target"] = data["label"].clone()
    data["label"][:, 3], data["target"][:, 3] = 4, 4
    region = PaintRegiond("target", LABELS, repaint=("emphysema",))(data)["region"]
    assert torch.equal(region.as_tensor() > 0, data["label"].as_tensor() == 4)


def change(key, index, value):
    def apply(data):
        data[key][index] = value

    return apply


@pytest.mark.parametrize(("spoil", "message"), [
    (change("target", (0, 0, 0, 0), 2), "target.nii.gz asks for tissue in 1 voxels that are background"),
    (change("target", (0, 1, 1, 0), 0), "target.nii.gz is background in 1 voxels of lung"),
    (change("target", (0, 1, 1, 0), 9), "target.nii.gz holds label 9, but labels name only"),
    (change("target", (0, 2), 1), "target.nii.gz equals the CT's own map"),
    (lambda d: d.update(target=d["target"][..., :1]), r"target.nii.gz has shape \(1, 4, 4, 1\), but ct.nii.gz has"),
    (lambda d: setattr(d["label"], "affine", torch.eye(4).double() * 2), "map.nii.gz has another affine than ct.nii"),
])  # fmt: skip
def test_impossible_target_is_refused(spoil, message):
    data = sample()
    spoil(data)
    with pytest.raises(ValueError, match=message):
        PaintRegiond("target", LABELS)(data)


def test_paste_keeps_the_original_bit_for_bit_and_whole_hu():
    original = MetaTensor(torch.tensor([[-1000.0, 12.0, 30.0]]))
    data = {"pred": torch.tensor([[1.0, -700.4, -650.6]]), "original": original,
            "original_region": torch.tensor([[0, 1, 1]])}  # fmt: skip
    assert PasteRegiond("pred")(data)["pred"].tolist() == [[-1000.0, -700.0, -651.0]]
    data["original"] = original + 0.25
    painted = PasteRegiond("pred")(data)["pred"]
    assert painted[0, 0].item() == -999.75
    assert np.allclose(painted[0, 1:], [-700.4, -650.6])


def test_files_without_a_partner_are_named(tmp_path):
    for folder in ("images", "labels", "targets"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    (tmp_path / "images" / "b.nii").touch()
    with pytest.raises(ValueError, match="b has no file in .*labels"):
        painting_cases(str(tmp_path), 0)
    (tmp_path / "images" / "b.nii").unlink()
    assert [case["image"] for case in painting_cases(str(tmp_path), 0)] == [str(tmp_path / "images/a.nii.gz")]
    with pytest.raises(ValueError, match="images holds no .nii"):
        painting_cases(str(tmp_path / "images"), 0)
