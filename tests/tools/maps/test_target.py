"""Target maps for one CT: the volume asked for, in the place named, in healthy lung, and refusals that say how much."""

import numpy as np
import pytest

from tests.tools.fakes.chest import LABELS, chest, lungs
from tools.io.files import InputError
from tools.maps import typical
from tools.maps.target import draw_target, place_words, where
from tools.quantify.extents import region_extents
from tools.tissues import pathological_tissues

SPACING = np.array([3.0, 3.0, 6.0])


def ct():
    """HU and map, turned to RAS."""
    label = lungs()[::-1, ::-1].astype(np.int16)
    return chest(lungs())[::-1, ::-1].astype(np.float32), label


def draw(tissue, volume_ml, place="", seed=0, label=None):
    hu, own = ct()
    own = own if label is None else label
    allowed = where(hu, own > 0, SPACING, place_words(place))
    target, lesions = draw_target(own, allowed, SPACING, LABELS, tissue, volume_ml, np.random.default_rng(seed), place)
    return hu, own, target, lesions


@pytest.mark.parametrize("tissue", pathological_tissues())
@pytest.mark.parametrize("volume_ml", [5, 150])
def test_the_volume_is_what_was_asked_for_and_only_healthy_lung_changes(tissue, volume_ml):
    _, own, target, lesions = draw(tissue, volume_ml)
    new = target != own
    assert set(target[new]) == {LABELS[tissue]} and set(own[new]) == {LABELS["healthy"]}
    assert new.sum() * 0.054 == pytest.approx(volume_ml, rel=0.1) and sum(lesions) == pytest.approx(new.sum() * 0.054)
    assert 1 <= len(lesions) <= 12


@pytest.mark.parametrize("place", ["left lower", "right upper", "middle", "subpleural", "left central"])
def test_a_place_is_kept_as_segment_would_measure_it(place):
    hu, _, target, _ = draw("consolidation", 12, place)
    found = region_extents(hu, target, SPACING, LABELS)
    total = found["whole"]["consolidation_ml"]
    for word in place.replace("subpleural", "peripheral").split():
        assert found[word]["consolidation_ml"] == pytest.approx(total), word


def test_the_seed_decides():
    one, same, other = (draw("fibrosis", 20, seed=seed)[2] for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_what_is_there_already_stays():
    label = lungs()[::-1, ::-1].astype(np.int16)
    label[15:30, 30:50, 2:8] = LABELS["emphysema"]
    _, own, target, _ = draw("emphysema", 30, "left", label=label)
    assert (target[own == LABELS["emphysema"]] == LABELS["emphysema"]).all()


def test_a_volume_that_does_not_fit_is_refused_with_what_is_free():
    hu, own = ct()
    free = (where(hu, own > 0, SPACING, ["left", "lower"]) & (own == 1)).sum() * 0.054
    with pytest.raises(InputError) as caught:
        draw("ground_glass", 4000, "left lower")
    assert str(caught.value).startswith(f"4000 ml of ground glass do not fit: left lower has {free:.0f} ml of healthy")
    assert f"at most {0.6 * free:.0f} ml can be filled" in str(caught.value)
    with pytest.raises(InputError, match="0.5 ml of ground glass are less than 24 voxels of this CT, 1.3 ml"):
        draw("ground_glass", 0.5)


def test_narrow_lung_is_refused_when_no_lesion_finds_room():
    own = lungs()[::-1, ::-1].astype(np.int16)
    own[np.indices(own.shape).sum(axis=0) % 2 == 0] = np.where(own > 0, LABELS["fibrosis"], 0)[
        np.indices(own.shape).sum(axis=0) % 2 == 0
    ]  # single healthy voxels
    with pytest.raises(InputError, match="50 ml of emphysema found no room: 0 ml could be placed"):
        draw("emphysema", 50, label=own)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("left basal", "--place 'left basal' holds 'basal'; a place is made of the words left, right, upper, middle"),
        ("left right", "--place 'left right' names left and right; of left, right name one"),
        ("subpleural central", "names subpleural and central; of subpleural, peripheral, central name one"),
    ],
)
def test_a_place_of_unknown_or_opposite_words_is_refused(place, told):
    with pytest.raises(InputError, match=told):
        place_words(place)


def test_typical_lesions_are_measured_from_maps(tmp_path):
    from tests.tools.fakes.chest import AFFINE, save

    label = lungs()
    label[18:30, 30:50, 2:5] = LABELS["fibrosis"]
    save(label, tmp_path / "labels/a.nii.gz", AFFINE)
    typical.write(tmp_path, tmp_path / "typical.json")
    rows = typical.read_json(tmp_path / "typical.json")
    assert list(rows) == ["fibrosis"] and len(rows["fibrosis"]) == 1
    assert rows["fibrosis"][0]["volume_ml"] == pytest.approx((label == LABELS["fibrosis"]).sum() * 0.054, abs=1e-3)
    kept = typical.read_json(typical.FILE)
    assert list(kept) == pathological_tissues() and set(kept["fibrosis"][0]) == set(rows["fibrosis"][0])
    assert all(len(rows) == typical.KEPT for rows in kept.values())
