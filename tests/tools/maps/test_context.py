"""Lesions moved with what touches them: halos and mixtures as in the data."""

import numpy as np
import pytest
from scipy import ndimage

from tests.tools.maps.test_lesions import TISSUES, chest
from tools.maps.bank import LesionPlacer, part_ml
from tools.maps.lesions import find_lesions
from tools.maps.placement import Receiver
from tools.tissues import tissue_labels

SPACING = np.array([2.0, 2.0, 8.0])


def haloed():
    """A consolidation with a halo of ground glass, and a ground glass of its own in the other lung."""
    label, hu = chest()
    x, y, _ = np.meshgrid(*(np.arange(n) for n in label.shape), indexing="ij")
    distance = np.hypot(x - 22, y - 35)
    inner = np.zeros(label.shape, bool)
    inner[..., 3:6] = True
    label[inner & (distance < 9) & (label > 0)] = 2
    label[inner & (distance < 6) & (label > 0)] = 5
    label[54:62, 30:40, 3:6] = 2
    hu[label == 2], hu[label == 5] = -600, 30
    return label, hu


def border_share(label):
    """Return the share of a consolidation's in-plane border that is ground glass."""
    solid = label == 5
    ring = ndimage.binary_dilation(solid, np.ones((3, 3, 1), bool)) & ~solid & (label > 0)
    return float((label[ring] == 2).mean())


def test_a_lesion_is_all_that_touches_whatever_the_tissue():
    label, hu = haloed()
    both = find_lesions("donor", label, hu, SPACING, TISSUES, context=True)
    assert [lesion.tissue for lesion in both] == ["ground_glass", "ground_glass"]
    assert sorted(set(np.unique(both[0].values))) == [0, 2, 5] and set(np.unique(both[1].values)) == {2}
    assert part_ml(both[0], 5) == pytest.approx(np.count_nonzero(label == 5) * 0.032)
    alone = find_lesions("donor", label, hu, SPACING, TISSUES)
    assert len(alone) == 3 and all(lesion.values is None for lesion in alone)


@pytest.mark.parametrize("seed", range(4))
def test_a_halo_is_moved_with_its_lesion(seed):
    label, hu = haloed()
    lesion = find_lesions("donor", label, hu, SPACING, TISSUES, context=True)[0]
    empty, ct = chest()
    receiver = Receiver(empty, ct, SPACING, healthy=1)
    voxels = receiver.place(lesion, 2, np.random.default_rng(seed))
    placed = receiver.target != receiver.label
    assert voxels == placed.sum() and set(np.unique(receiver.target[placed])) == {2, 5}
    assert border_share(receiver.target) > 0.9
    assert (
        np.median(receiver.pasted[receiver.target == 5]) > 0 > -400 > np.median(receiver.pasted[receiver.target == 2])
    )
    ml = receiver.new_ml(TISSUES)
    assert ml["consolidation"] / ml["ground_glass"] == pytest.approx(part_ml(lesion, 5) / part_ml(lesion, 2), rel=0.35)


def test_tissue_by_tissue_the_halo_is_lost():
    label, hu = haloed()
    lesion = find_lesions("donor", label, hu, SPACING, TISSUES)[-1]
    receiver = Receiver(*chest(), SPACING, healthy=1)
    receiver.place(lesion, 5, np.random.default_rng(0))
    assert border_share(receiver.target) == 0


def test_lesions_that_hold_far_too_much_of_a_tissue_wait():
    label, hu = haloed()
    large, small = find_lesions("donor", label, hu, SPACING, TISSUES, context=True)
    placer = LesionPlacer({"ground_glass": [large, small]}, {}, tissue_labels(), 0)
    for seed in range(5):
        receiver = Receiver(*chest(), SPACING, healthy=1)
        placer.place(receiver, "ground_glass", np.random.default_rng(seed), lacking_ml=part_ml(small, 2))
        assert not (receiver.target == 5).any()
