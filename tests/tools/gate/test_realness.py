"""Real tissue of unseen patients passes for real, and seven fakes that once passed the gate do not."""

import numpy as np
import pytest

from tools.bundles import load_script
from tools.data.datalist import Case
from tools.gate.copies import box_of, spread
from tools.gate.fakes import FAKES, REACH, fakes
from tools.gate.power import another_tissue, judge_fakes, unchanged_host
from tools.gate.realness import TILES_PER_CASE, Realness, lower_limit, sample, tile_features, tiles
from tools.phantom.phantom import phantom
from tools.tissues import pathological_tissues, tissue_labels

cut_tiles = load_script("difflung_synthesis", "texture").cut_tiles


def texture(seed, size=96):
    """Return a CT of correlated texture, HU, shape (W, H, 1), and the tissue in it."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((size, size, 1)), (1.5, 1.5, 0))
    where = np.zeros(field.shape, bool)
    where[8:56, 8:56] = True
    return (-700 + rng.normal(0, 10) + 70 * field / field.std()).astype(np.float32), where


@pytest.fixture(scope="module")
def realness():
    samples = []
    for seed in range(6):
        hu, where = texture(seed)
        samples.append(sample(f"p{seed}", hu, where, tile_features(hu - 150, where), seed))
    return Realness(samples, [])


def test_the_real_tissue_of_an_unseen_patient_lies_above_the_limit(realness):
    for seed in range(10, 20):
        score, limit = realness.judge(tile_features(*texture(seed)))
        assert score > limit


@pytest.mark.parametrize("name", FAKES)
def test_fakes_in_an_unseen_patient_lie_below_it(realness, name):
    hu, where = texture(30)
    filled = dict(fakes(hu, where, seed=1))[name]
    score, limit = realness.judge(tile_features(filled, where))
    assert score < limit and (filled[~where] == hu[~where]).all()


def test_a_box_of_a_fake_holds_the_voxels_of_the_whole():
    hu, where = np.random.default_rng(0).normal(-700, 90, (40, 30, 5)).astype(np.float32), np.zeros((40, 30, 5), bool)
    where[12:20, 3:9, 1:3] = where[16, 7:20, 2] = True
    box = box_of(where, REACH)
    assert hu[box].shape == (16, 24, 5)
    for (name, whole), (_, part) in zip(fakes(hu, where, 3), fakes(hu, where, 3, box), strict=True):
        assert np.array_equal(whole[where], part[where[box]]), name
    rng = np.random.default_rng(3)
    assert np.array_equal(dict(fakes(hu, where, 3))["histogram_draws"][where], rng.choice(hu[where], hu.shape)[where])


def test_tiles_are_those_of_each_slice_evenly_spread():
    rng = np.random.default_rng(1)
    hu, where = rng.normal(-700, 90, (70, 60, 9)).astype(np.float32), rng.random((70, 60, 9)) < 0.8
    for edge, places in tiles(where).items():
        cut = [cut_tiles(hu[..., z], where[..., z], edge) for z in range(9)]
        values, inside = (spread(np.concatenate(parts), TILES_PER_CASE) for parts in zip(*cut))
        assert len(inside) == TILES_PER_CASE and np.array_equal(places.inside, inside)
        assert np.array_equal(places.cut(hu)[inside], values[inside])
    assert not len(tiles(np.zeros((9, 9, 2), bool))[8].corners)


def test_a_region_too_small_for_large_tiles_is_judged_by_small_ones_and_a_speck_by_none(realness):
    hu, where = texture(31)
    small = where.copy()
    small[17:] = small[:, 17:] = False
    assert not len(tile_features(hu, small)[16]) and np.isfinite(realness.judge(tile_features(hu, small))[0])
    small[11:] = False
    assert np.isnan(realness.judge(tile_features(hu, small))).all()


def test_two_patients_are_too_few_to_judge_by():
    samples = [sample(f"p{seed}", *texture(seed), tile_features(*texture(9)), seed) for seed in range(2)]
    assert np.isnan(Realness(samples, []).judge(tile_features(*texture(5)))).all()


def test_the_limit_rejects_one_real_case_in_twenty():
    rng = np.random.default_rng(0)
    for number in (6, 12, 40):
        rejected = [rng.normal() < lower_limit(rng.normal(size=number)) for _ in range(4000)]
        assert np.mean(rejected) == pytest.approx(0.05, abs=0.012)


@pytest.mark.slow
def test_seven_fakes_are_rejected_and_real_tissue_passes_on_drawn_patients(tmp_path):
    phantom(tmp_path / "drawn", patients=24, seed=3, size=(144, 144, 8))
    images = sorted((tmp_path / "drawn/images").iterdir())
    cases = [Case(path, tmp_path / "drawn/labels" / path.name, path.name[:10], 0) for path in images]
    rows = judge_fakes(cases[:14], cases[14:], seed=0)
    assert {row["kind"] for row in rows} == {"real", *FAKES, unchanged_host.__name__, another_tissue.__name__}
    for kind in {row["kind"] for row in rows}:
        own = [row for row in rows if row["kind"] == kind]
        rejected = sum(row["rejected"] for row in own) / sum(row["cases"] for row in own)
        assert rejected <= 0.1 if kind == "real" else rejected >= 0.9, (kind, own)
    assert {row["tissue"] for row in rows} <= set(pathological_tissues()) < set(tissue_labels())
