"""New maps: lesions keep their kind of place, stay in healthy lung, and turn back into the file's own orientation."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tools.io.volume import canonical, canonical_spacing, original
from tools.maps.deform import deform, draw_deformation, smoothing
from tools.maps.lesions import find_lesions, lung_height
from tools.maps.placement import Receiver
from tools.quantify.extents import pleura_distance

TISSUES = {"ground_glass": 2, "consolidation": 5}


def chest(size=(80, 70, 8)):
    """Two elliptic lungs of HU -850 in a body of HU 40."""
    x, y, _ = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    lungs = (((x - 22) / 16) ** 2 + ((y - 35) / 26) ** 2 < 1) | (((x - 58) / 16) ** 2 + ((y - 35) / 26) ** 2 < 1)
    lungs[..., 0] = lungs[..., -1] = False
    rng = np.random.default_rng(0)
    return lungs.astype(np.int16), np.where(lungs, -850, 40) + rng.normal(0, 10, size).astype(np.float32)


def donor():
    label, hu = chest()
    label[16:28, 10:20, 5:7] = np.where(label[16:28, 10:20, 5:7] > 0, 5, 0)
    hu[label == 5] = 30
    return find_lesions("donor", label, hu, np.array([2.0, 2.0, 8.0]), TISSUES)


def receiver():
    label, hu = chest()
    return Receiver(label, hu, np.array([2.2, 1.8, 7.0]), healthy=1)


def test_a_map_counts_what_was_entered_and_finds_places_as_if_it_looked_at_all_voxels():
    chosen, rng, (lesion,) = receiver(), np.random.default_rng(2), donor()
    for _ in range(6):
        chosen.place(lesion, 5, rng)
        free = chosen.target == 1
        assert np.array_equal(chosen.free, free.sum(2))
        assert chosen.added[5] == np.count_nonzero(chosen.target != chosen.label) == chosen.added.sum()
        same = np.random.default_rng(chosen.room)
        places = np.argwhere(free)[same.integers(free.sum(), size=400)]
        depth = chosen.depth_mm[tuple(places.T)]
        unlike = np.abs(chosen.height[places[:, 2]] - 0.4) / 0.15 + np.abs(depth - 9.0) / 8.0
        expected = places[np.argsort(unlike, kind="stable")[:40]]
        assert np.array_equal(chosen.likely_places(0.4, 9.0, np.random.default_rng(chosen.room)), expected)
    assert chosen.donors
    chosen.target[:], chosen.free[:] = 0, 0
    assert not len(chosen.likely_places(0.4, 9.0, rng))


def test_a_bend_is_smoothed_as_by_a_filter():
    noise = np.random.default_rng(0).normal(size=(31, 43))
    across, along = (smoothing(size, size / 6) for size in noise.shape)
    expected = ndimage.gaussian_filter(noise, (31 / 6, 43 / 6), mode="nearest")
    np.testing.assert_allclose(across @ noise @ along.T, expected, atol=1e-14)


def deformed(lesion, spacing, seed):
    return deform(lesion, spacing, draw_deformation(lesion, spacing, np.random.default_rng(seed)))


def test_lesion_knows_where_it_lay():
    (lesion,) = donor()
    assert (lesion.case, lesion.tissue) == ("donor", "consolidation")
    assert lesion.measures["height"] == pytest.approx(4.5 / 5)  # slices 5 and 6 of the lung's 1 to 6
    assert 2 < lesion.measures["depth_mm"] < 20
    assert (lesion.hu[lesion.mask] == 30).all()


def test_placed_lesion_lies_in_healthy_lung_and_carries_the_donors_hu():
    ct, (lesion,) = receiver(), donor()
    voxels = ct.place(lesion, 5, np.random.default_rng(1))
    placed = ct.target == 5
    assert voxels == placed.sum() > 24
    assert (ct.label[placed] == 1).all()
    assert np.array_equal(ct.target[~placed], ct.label[~placed])
    assert np.array_equal(ct.pasted[~placed], ct.hu[~placed])
    assert np.median(ct.pasted[placed]) == pytest.approx(30, abs=5)
    assert ct.donors == [{"case": "donor", "tissue": "consolidation", "voxels": voxels}]


def test_placed_lesions_keep_the_donors_height():
    (lesion,) = donor()
    heights = []
    for seed in range(20):
        ct = receiver()
        ct.place(lesion, 5, np.random.default_rng(seed))
        heights.append(np.average(ct.height, weights=(ct.target == 5).sum(axis=(0, 1))))
    assert np.mean(heights) == pytest.approx(lesion.measures["height"], abs=0.15)


def test_size_is_kept_in_millimetres_within_the_scaling():
    (lesion,) = donor()
    area = lesion.mask[..., 0].sum() * 4.0  # mm2
    for seed in range(10):
        spacing = np.array([1.0, 1.0, 8.0])
        mask, hu, _ = deformed(lesion, spacing, seed)
        assert mask.shape == hu.shape
        assert mask.shape[2] == 2
        assert 0.5 * area < mask[..., 0].sum() < 1.8 * area


def test_shapes_differ_from_the_donors_and_from_each_other():
    (lesion,) = donor()
    assert len({deformed(lesion, lesion.spacing, seed)[0].sum() for seed in range(6)}) > 3


def test_distance_to_the_pleura_is_that_of_the_whole_slice():
    lung = np.random.default_rng(0).random((30, 20, 3)) < 0.9
    lung[:8], lung[:, 15:], lung[..., 2] = False, False, False
    whole = [ndimage.distance_transform_edt(lung[..., k], sampling=(0.7, 0.9)) for k in range(3)]
    distance = pleura_distance(lung, np.array([0.7, 0.9, 2.0]))
    assert np.array_equal(distance, np.stack(whole, axis=-1).astype(np.float32)) and distance.max() > 1


def test_lesion_larger_than_the_room_is_not_placed():
    (lesion,) = donor()
    ct = receiver()
    ct.room = lesion.mask.sum() // 4
    assert ct.place(lesion, 5, np.random.default_rng(0)) == 0
    assert np.array_equal(ct.target, ct.label)


def test_lung_without_room_takes_nothing():
    ct, (lesion,) = receiver(), donor()
    ct.target[ct.target == 1] = 2
    before = ct.target.copy()
    assert ct.place(lesion, 5, np.random.default_rng(0)) == 0
    assert np.array_equal(ct.target, before)


def test_one_slice_has_no_height():
    assert lung_height(np.ones((4, 4, 1), bool)).tolist() == [0.5]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_canonical_and_back_for_every_orientation(axes):
    for signs in itertools.product((1, -1), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag(signs) @ np.diag([1.0, 2.0, 3.0]))[:, axes]
        array = np.arange(24).reshape(2, 3, 4)
        turned = canonical(array, affine)
        expected = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int16), affine))
        assert np.array_equal(turned, np.asarray(expected.dataobj))
        assert np.array_equal(original(turned, affine), array)
        file = nib.Nifti1Image(array.astype(np.int16), affine)
        assert np.allclose(canonical_spacing(file), [1, 2, 3])
