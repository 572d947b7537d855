"""Copies of kept tissue are found wherever they lie, mirrored, lighter or noisy; other tissue is not near."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tools.gate.copies import TileBank, correlate, dense_corners, tile_corners


def tissue(seed: int, size=(90, 80, 3)) -> tuple[np.ndarray, np.ndarray]:
    """A CT of coarse texture with a lesion in the middle slice."""
    hu = 400 * ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), (2, 2, 0)) - 700
    where = np.zeros(size, bool)
    where[20:60, 15:52, 1] = True
    return hu.astype(np.float32), where


def bank(edge=16, whole=False, seeds=range(5), most=10_000) -> TileBank:
    made = TileBank(edge, whole, most)
    for seed in seeds:
        made.add(f"case{seed}", f"patient{seed}", *tissue(seed))
    return made


def moved(hu, where, shift=(7, 5)):
    return np.roll(hu, shift, (0, 1)), np.roll(where, shift, (0, 1))


@pytest.mark.parametrize(("edge", "whole"), [(16, False), (32, True)])
def test_other_tissue_is_far_and_a_copy_near_wherever_it_lies(edge, whole):
    kept = bank(edge, whole)
    other = kept.nearest(kept.ask(*tissue(17)))
    copy = kept.nearest(kept.ask(*moved(*tissue(3))))
    assert copy.distance < 0.01 < 0.1 < other.distance
    assert copy.where == "case3 slice 1"


def test_mirrored_denser_noisy_copy_is_found():
    kept = bank()
    hu, where = moved(*tissue(2))
    hu = 0.7 * hu + 150 + np.random.default_rng(0).normal(0, 10, hu.shape)
    found = kept.nearest(kept.ask(hu[::-1], where[::-1]))
    assert found.distance < 0.05 and found.where == "case2 slice 1"


def test_surroundings_of_a_copied_region_do_not_hide_it_but_hide_the_whole_patch():
    hu, where = tissue(1)
    pasted = np.where(where, hu, tissue(40)[0])
    inner, outer = bank(), bank(48, whole=True)
    assert inner.nearest(inner.ask(pasted, where)).distance < 0.001
    assert outer.nearest(outer.ask(pasted, where)).distance > 0.1


def test_copy_in_half_of_the_tissue_is_found():
    kept = bank()
    hu, where = tissue(30)
    hu[20:40, 15:52] = tissue(4)[0][20:40, 15:52]
    assert kept.nearest(kept.ask(hu, where)).where == "case4 slice 1"
    assert kept.nearest(kept.ask(hu, where)).distance < 0.02


def test_the_patient_left_out_does_not_count():
    kept = bank()
    found = kept.nearest(kept.ask(*tissue(3)), leave_out="patient3")
    assert found.distance > 0.1 and not found.where.startswith("case3")
    alone = bank(seeds=[3])
    assert np.isnan(alone.nearest(alone.ask(*tissue(3)), leave_out="patient3").distance)


def test_flat_tissue_resembles_nothing():
    kept = bank()
    _, where = tissue(0)
    flat = np.full(where.shape, -800, np.float32)
    kept.add("flat", "flat", flat, where)
    assert kept.nearest(kept.ask(flat, where)).distance > 0.9


def test_tissue_too_small_for_a_tile_is_not_judged():
    kept = bank()
    hu, where = tissue(0)
    speck = np.zeros_like(where)
    speck[30:35, 30:36, 1] = True
    asked = kept.ask(hu, speck)
    assert len(asked.values) == 0
    assert np.isnan(kept.nearest(asked).distance)


def test_larger_lesions_are_thinned_by_slices():
    hu, where = (np.repeat(array[..., 1:2], 40, axis=2) for array in tissue(0))
    whole, thinned = TileBank(16), TileBank(16, most=500)
    for kept in (whole, thinned):
        kept.add("case", "patient", hu, where)
    assert len(thinned.tiles[0]) < 800 < len(whole.tiles[0])
    assert set(thinned.slices[0]) < set(whole.slices[0])


def test_correlation_is_pearsons_over_the_samples_inside():
    rng = np.random.default_rng(0)
    values, tiles = rng.normal(0, 50, (3, 64)), rng.normal(0, 50, (4, 64))
    tiles -= tiles.mean(1, keepdims=True)
    inside = rng.random((3, 64)) > 0.4
    found = correlate(*(torch.from_numpy(array.astype(np.float32)) for array in (values, inside, tiles)))
    expected = [[np.corrcoef(v[i], t[i])[0, 1] for t in tiles] for v, i in zip(values, inside)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    whole = correlate(torch.from_numpy(values), None, torch.from_numpy(tiles).double())
    np.testing.assert_allclose(whole, np.corrcoef(values, tiles)[:3, 3:], atol=1e-6)


def test_every_tile_asked_has_a_kept_one_within_reach():
    _, where = tissue(0)
    asked, kept = tile_corners(where[..., 1], 16), dense_corners(where[..., 1], 16)
    assert len(asked) >= 4
    for corner in asked:
        offsets = kept - corner
        assert ((offsets >= -2) & (offsets <= 1)).all(1).any()
