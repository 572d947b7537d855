"""Texture features on known fields, and distances between sets whose distance is known."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scripts.texture import FEATURES, LEVELS, cut_tiles, frechet_distance, mmd, prdc, tile_features

QUARTET = ("precision", "recall", "density", "coverage")


def noise(seed, size=96, mean=-700.0, std=60.0, blur=0.0):
    field = np.random.default_rng(seed).standard_normal((size, size))
    field = gaussian_filter(field, blur, mode="wrap") if blur else field
    return mean + std * field / field.std()


def disc(size=96, radius=40):
    axis = (np.arange(size) - size / 2) ** 2
    return axis[:, None] + axis < radius**2


def gaussians(seed, rows=4000, columns=6, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((rows, columns))


def feature(name, features):
    return features[:, FEATURES.index(name)]


def described(hu, mask):
    """Return the features of a region of one slice."""
    return tile_features(*cut_tiles(hu, mask))


def test_hu_outside_the_region_has_no_influence():
    mask = disc()
    inside = noise(0)
    features = [described(np.where(mask, inside, outside), mask) for outside in (0.0, -1024.0, noise(1), np.nan)]
    assert len(features[0]) > 10
    for other in features[1:]:
        np.testing.assert_array_equal(features[0], other)


def test_tiles_are_disjoint_and_at_least_half_filled():
    mask = disc()
    hu = np.arange(mask.size, dtype=float).reshape(mask.shape)
    values, inside = cut_tiles(hu, mask)
    assert inside.sum((1, 2)).min() >= 128
    assert mask.ravel()[values[inside].astype(int)].all()
    assert len(np.unique(values[inside])) == inside.sum() > 0.8 * mask.sum()


def test_each_piece_of_the_region_has_its_own_grid():
    mask = np.zeros((64, 64), bool)
    mask[3:19, 5:21] = mask[30:46, 40:56] = True  # one grid over both would cut either into four
    values, inside = cut_tiles(noise(0, 64), mask)
    assert inside.shape == (2, 16, 16) and inside.all()


@pytest.mark.parametrize("mask", [np.zeros((40, 40), bool), np.eye(40, dtype=bool), disc(40, radius=5)])
def test_regions_without_room_for_a_tile_give_no_features(mask):
    assert described(noise(0, 40), mask).shape == (0, len(FEATURES))


def test_first_order_features_are_those_of_the_distribution():
    features = described(noise(3, 480, mean=-900, std=50), np.ones((480, 480), bool)).mean(0)
    known = {"mean": -900, "std": 50, "q05": -900 - 1.645 * 50, "q95": -900 + 1.645 * 50}
    assert {name: features[FEATURES.index(name)] for name in known} == pytest.approx(known, rel=0.02)
    assert features[FEATURES.index("low_attenuation")] == pytest.approx(0.159, abs=0.01)
    assert abs(features[FEATURES.index("skewness")]) < 0.02
    assert abs(features[FEATURES.index("kurtosis")]) < 0.05


def test_a_ramp_has_one_gradient_and_a_constant_none():
    ramp = np.broadcast_to(-900 + 3 * np.arange(32.0)[:, None] + 4 * np.arange(32.0), (32, 32))
    features = described(ramp, np.ones((32, 32), bool))
    np.testing.assert_allclose(feature("gradient_mean", features), 5)
    np.testing.assert_allclose(feature("gradient_std", features), 0, atol=1e-6)
    constant = described(np.full((32, 32), -900.0), np.ones((32, 32), bool))[0]
    expected = {"mean": -900, "q05": -900, "q95": -900}
    expected |= {f"{name}_{step}": 1 for name in ("homogeneity", "correlation", "energy") for step in (1, 2)}
    np.testing.assert_allclose(constant, [expected.get(name, 0) for name in FEATURES], atol=1e-6)


def test_blur_moves_energy_to_the_coarse_bands_and_raises_the_correlation():
    whole = np.ones((96, 96), bool)
    fine, coarse = (described(noise(0, blur=blur), whole) for blur in (0, 2))
    assert feature("band_1", fine).mean() > 3 * feature("band_1", coarse).mean()
    assert feature("band_4", coarse).mean() > 2 * feature("band_4", fine).mean()
    assert feature("correlation_1", coarse).mean() > 0.8
    assert abs(feature("correlation_1", fine).mean()) < 0.1


def test_stripes_have_the_contrast_that_can_be_counted():
    step = (300 + 1024) / LEVELS
    stripes = np.broadcast_to(np.where(np.arange(32) % 2, -700 + 2 * step, -700)[:, None], (32, 32))
    features = described(stripes, np.ones((32, 32), bool))
    np.testing.assert_allclose(feature("contrast_1", features), 3)  # 2 levels apart in 3 directions, 0 in 1: 4 * 3 / 4
    np.testing.assert_allclose(feature("contrast_2", features), 2)  # 2 levels in the diagonals, which round to 1 voxel


def test_the_outline_of_the_region_leaves_no_trace():
    stripes = np.broadcast_to(np.where(np.arange(96) % 2, -600.0, -700.0)[:, None], (96, 96))
    np.testing.assert_allclose(feature("contrast_1", described(stripes, disc())), 0.75 * 3**2)  # levels 7 and 10
    columns = np.broadcast_to(noise(0, 16)[0], (2, 16, 16))
    inside = np.ones((2, 16, 16), bool)
    inside[1, 9:] = False  # the same columns, but shorter
    bands = tile_features(columns, inside)[:, FEATURES.index("band_1") : FEATURES.index("band_4") + 1]
    np.testing.assert_allclose(bands[0], bands[1])


def test_features_of_no_tiles_are_an_empty_table():
    assert tile_features(np.zeros((0, 16, 16)), np.zeros((0, 16, 16), bool)).shape == (0, len(FEATURES))


def test_slice_and_mask_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"share one shape \(W, H\), but have \(8, 8\) and \(8, 9\)"):
        cut_tiles(np.zeros((8, 8)), np.zeros((8, 9), bool))


def test_equal_sets_are_at_no_distance():
    a = gaussians(0, 200)
    assert frechet_distance(a, a[::-1], a) == pytest.approx(0, abs=1e-6)
    assert prdc(a, a, a) == pytest.approx({"precision": 1, "recall": 1, "density": 1.2, "coverage": 1}, abs=0.01)


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.0, 2.0), (0.5, 0.5)])
def test_frechet_distance_of_gaussians_is_the_closed_form(shift, scale):
    reference = gaussians(0)
    distance = frechet_distance(reference, gaussians(1, shift=shift, scale=scale), reference)
    assert distance == pytest.approx(6 * (shift**2 + (1 - scale) ** 2), rel=0.1)


def test_units_of_the_features_do_not_matter():
    a, b = gaussians(0, 300), gaussians(1, 300, shift=0.3)
    units = np.array([1, 10, 0.1, 1000, 1, 3])
    for measure in (frechet_distance, mmd):
        assert measure(a * units, b * units, a * units) == pytest.approx(measure(a, b, a))


def test_features_without_spread_do_not_break_the_distances():
    a, b = gaussians(0, 50), gaussians(1, 50)
    a[:, 0] = b[:, 0] = 7.0
    assert math.isfinite(frechet_distance(a, b, a)) and math.isfinite(mmd(a, b, a))


def test_mmd_is_unbiased():
    distances = [mmd(gaussians(2 * seed, 100), gaussians(2 * seed + 1, 100), gaussians(0)) for seed in range(40)]
    assert abs(np.mean(distances)) < 2 * np.std(distances) / np.sqrt(40)
    assert min(distances) < 0


def test_mmd_rises_with_the_shift():
    a = gaussians(0, 500)
    distances = [mmd(a, gaussians(1, 500, shift=shift), a) for shift in (0, 0.5, 1, 2)]
    assert distances == sorted(distances)
    assert distances[1] > 5 * abs(distances[0])


def test_sets_apart_share_nothing_and_a_collapsed_one_is_precise_without_recall():
    real = gaussians(0, 300)
    assert prdc(real, gaussians(1, 300, shift=50), real) == dict.fromkeys(QUARTET, 0.0)
    collapsed = prdc(real, gaussians(1, 300, scale=0.05), real)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.05
    assert collapsed["coverage"] < 0.5


def test_too_few_tiles_give_nan():
    a, few = gaussians(0, 40), gaussians(1, 15)
    assert math.isnan(frechet_distance(a, few, a))
    assert math.isnan(mmd(few, a, a))
    assert all(math.isnan(value) for value in prdc(a, few, a).values())
    assert all(math.isnan(value) for value in prdc(a, a, a, nearest=40).values())
