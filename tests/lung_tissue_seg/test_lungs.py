"""The segmenter looks for the lungs first, labels nothing else, and never holds more than a few slices of classes."""

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from tests.lung_tissue_seg.bundle import load

lungs = load("lungs")
VOXEL_MM = (2.0, 2.0, 5.0)


def chest(slices=20, first=4, end=12, table=True):
    """A body of 300 by 220 mm with two lungs in some slices, on a table; HU."""
    x, y = np.meshgrid(np.arange(200) - 100, np.arange(180) - 90, indexing="ij")
    hu = np.full((200, 180, slices), -1000, np.float32)
    hu[(x / 75) ** 2 + (y / 55) ** 2 < 1] = 40
    for side in (-32, 32):
        hu[((x - side) / 24) ** 2 + (y / 40) ** 2 < 1, first:end] = -850
    if table:
        hu[10:190, 5:7] = 100
    return hu


def scaled(hu, voxel_mm=VOXEL_MM):
    affine = torch.diag(torch.tensor([*voxel_mm, 1.0]))
    return MetaTensor(torch.as_tensor((hu + 1024) / 1324, dtype=torch.float32)[None, None], affine=affine)


class Pointwise(torch.nn.Module):
    """A network whose answer of a voxel depends on that voxel alone; it counts the pixels it was asked about."""

    def __init__(self):
        super().__init__()
        self.pixels, self.largest = 0, 0

    def forward(self, x):
        self.pixels += x.numel()
        self.size = x.shape[2:]
        self.largest = max(self.largest, len(x))
        return torch.cat([-((x - level) ** 2) * 50 for level in (0.0, 0.13, 0.8)], 1)


class Seeing(torch.nn.Module):
    """A network that sees its surroundings and knows left from right."""

    def __init__(self, dims=2):
        super().__init__()
        torch.manual_seed(1)
        kind = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
        self.layers = torch.nn.Sequential(kind(1, 6, 5, padding=2), torch.nn.ReLU(), kind(6, 3, 3, padding=1))

    def forward(self, x):
        return self.layers(x)


def test_the_box_holds_the_lungs_and_leaves_out_the_table_and_slices_without_lung():
    hu = chest(slices=60, first=20, end=30)
    box = lungs.find_lungs(hu, VOXEL_MM)
    outside = np.ones(hu.shape, bool)
    outside[box] = False
    assert not (outside & (hu == -850)).any()
    assert box[1].start > 10 and box[1].stop - box[1].start < 130  # the body alone
    assert (box[2].start, box[2].stop) == (12, 38)  # 40 mm more than the air


def test_a_lung_without_air_and_one_at_the_border_are_in_the_box():
    hu = chest()
    dense = np.where((hu == -850) & (np.arange(200) < 100)[:, None, None], 30, hu)  # one lung consolidated
    box = lungs.find_lungs(dense, VOXEL_MM)
    assert (hu[box] == -850).sum() == (hu == -850).sum()
    cropped = hu[50:150, 55:125]  # a field of view smaller than the body
    box = lungs.find_lungs(cropped, VOXEL_MM)
    assert (cropped[box] == -850).sum() == (cropped == -850).sum()


@pytest.mark.parametrize("hu", [chest(first=0, end=0), np.full((50, 50, 3), -1000.0), np.full((50, 50, 1), 40.0)])
def test_no_lung_is_found_where_there_is_none(hu):
    assert lungs.find_lungs(hu, VOXEL_MM) is None
    inferer = lungs.LungInferer([64, 64])
    with pytest.warns(UserWarning, match=lungs.NO_LUNG):
        found = inferer(scaled(hu), Pointwise())
    assert found.shape == (1, 1, *hu.shape) and found.dtype == torch.uint8 and not found.any()
    named = scaled(hu)
    named.meta["filename_or_obj"] = ["a.nii.gz"]  # as a DataLoader collates it
    with pytest.warns(UserWarning, match=f"a.nii.gz: {lungs.NO_LUNG}"):
        inferer(named, Pointwise())
    probable = lungs.LungInferer([64, 64], probabilities=True)
    with pytest.warns(UserWarning):
        found = probable(scaled(hu), Pointwise())
    assert found.shape == (1, 3, *hu.shape) and (found[:, 0] == 1).all() and not found[:, 1:].any()


def test_the_labels_in_the_box_are_those_of_the_whole_ct_and_cost_less():
    hu = chest(slices=60, first=20, end=30)
    whole, boxed = Pointwise(), Pointwise()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lungs.LungInferer([64, 64])(scaled(hu), boxed)
        expected = lungs.LungInferer([64, 64], find_lung=False)(scaled(hu), whole)
    assert isinstance(found, MetaTensor) and torch.equal(found.affine, scaled(hu).affine)
    lung = torch.as_tensor(hu == -850)[None, None]
    assert torch.equal(found[lung], expected[lung]) and (found[lung] == 1).all()
    assert boxed.pixels < 0.4 * whole.pixels and boxed.largest <= 8


def test_windows_and_weights_are_those_of_monai():
    volume = torch.rand(1, 1, 80, 70, 5, generator=torch.Generator().manual_seed(0))
    network = Seeing()
    settings = {"overlap": 0.5, "sw_batch_size": 2}
    monai = SliceInferer(roi_size=[32, 48], spatial_dim=2, mode="gaussian", **settings)
    with torch.no_grad():
        expected = monai(volume, lambda x: network(x).softmax(1))
        ours = lungs.LungInferer([32, 48], find_lung=False, **settings)
        assert torch.equal(ours(volume, network), expected.argmax(1, keepdim=True).byte())
        ours.probabilities = True
        assert torch.allclose(ours(volume, network), expected, atol=1e-6)


def test_mirroring_forgets_left_and_right():
    volume, network = torch.rand(1, 1, 40, 48, 3), Seeing()
    settings = {"roi_size": [64, 64], "find_lung": False, "probabilities": True}
    with torch.no_grad():
        for mirror, alike in ((True, True), (False, False)):
            inferer = lungs.LungInferer(**settings, mirror=mirror)
            one, other = inferer(volume, network), inferer(volume.flip(2), network).flip(2)
            assert torch.allclose(one, other, atol=1e-5) == alike


@pytest.mark.parametrize("find_lung", [True, False])
def test_blocks_are_labelled_as_blocks(find_lung):
    hu = chest()
    inferer = lungs.LungInferer([64, 64, 8], find_lung=find_lung)
    with torch.no_grad():
        found = inferer(scaled(hu), Seeing(3))
    assert found.shape == (1, 1, *hu.shape) and len(found.unique()) > 1


def test_a_window_larger_than_the_volume_and_a_batch_of_cts():
    volume = torch.rand(2, 1, 20, 37, 1)
    found = lungs.LungInferer([320, 320], find_lung=False)(volume, Pointwise())
    assert found.shape == volume.shape
    assert torch.equal(found, Pointwise()(volume).argmax(1, keepdim=True).byte())
    for fit_windows, size in ((True, (32, 48)), (False, (320, 320))):
        network = Pointwise()
        again = lungs.LungInferer([320, 320], find_lung=False, fit_windows=fit_windows)(volume, network)
        assert torch.equal(again, found) and network.size == size


@pytest.mark.parametrize(("settings", "message"), [
    ({"roi_size": [64, 60]}, "a window has two or three sides, the first two multiples of 16, not"),
    ({"roi_size": [64]}, "a window has two or three sides"),
    ({"roi_size": [64, 64], "overlap": 1}, "overlap must be from 0 to below 1, not 1"),
    ({"roi_size": [64, 64], "find_lung": "false"}, "find_lung must be True or False, not 'false'"),
    ({"roi_size": [64, 64], "sw_batch_size": 0}, "sw_batch_size must be at least 1, not 0"),
])  # fmt: skip
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lungs.LungInferer(**settings)


def test_input_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the input must have the shape \(N, 1, W, H, D\), not \(1, 1, 32, 32\)"):
        lungs.LungInferer([64, 64])(torch.rand(1, 1, 32, 32), Pointwise())


def test_pieces_far_smaller_than_the_lung_are_no_lung():
    """The stand-in calls every dark voxel healthy: the two lungs, and a bubble in the abdomen."""
    module = load("lungs")
    hu = np.full((64, 48, 8), -1000.0, np.float32)
    hu[4:60, 4:44] = 40
    hu[10:28, 12:36] = hu[36:54, 12:36] = -850
    hu[30:33, 38:41, 2:4] = -900

    def network(image):
        dark = (image < 0.4).float()
        return torch.cat([1 - dark, dark], dim=1) * 20

    image = MetaTensor(
        torch.from_numpy((hu + 1024) / 1324)[None, None], affine=torch.diag(torch.tensor([4.0, 4, 4, 1]))
    )
    answers = {share: module.LungInferer([64, 64], island_share=share)(image, network)[0, 0] for share in (0.0, 0.01)}
    assert answers[0.0][31, 39, 3] == 1 and answers[0.01][31, 39, 3] == 0
    assert answers[0.01][20, 20, 3] == answers[0.01][45, 20, 3] == 1
    with pytest.raises(ValueError, match="island_share must be from 0 to below 1, not 1"):
        module.LungInferer([64, 64], island_share=1)


def test_the_likeliest_tissue_is_told_beside_the_label():
    image = scaled(chest())
    inferer = lungs.LungInferer([160, 160], tissues=True)
    both, label = inferer(image, Pointwise()), lungs.LungInferer([160, 160])(image, Pointwise())
    assert both.shape == (1, 2, *label.shape[2:]) and torch.equal(both[:, :1], label)
    inside = both[0, 1] > 0
    assert inside.any() and torch.equal(both[0, 1][label[0, 0] > 0], label[0, 0][label[0, 0] > 0])
    with pytest.raises(ValueError, match="tissues adds a channel to labels"):
        lungs.LungInferer([160, 160], tissues=True, probabilities=True)
