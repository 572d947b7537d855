"""The procedural model: its lesions are like those it was fitted on, keep to healthy lung, and follow the seed."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from tools.maps.growth import LesionModel, _from_model, _to_model
from tools.maps.lesions import find_lesions
from tools.maps.placement import Receiver
from tools.maps.shape import measures

SPACING = np.array([2.0, 2.0, 8.0])
SIZE = (90, 80, 12)


def lungs():
    x, y, _ = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    return (((x - 24) / 19) ** 2 + ((y - 40) / 32) ** 2 < 1) | (((x - 66) / 19) ** 2 + ((y - 40) / 32) ** 2 < 1)


def patient(kind: str, seed: int) -> np.ndarray:
    """A map with basal lesions along the pleura ("rim") or round ones deep in the upper lung ("ball")."""
    rng, lung = np.random.default_rng(seed), lungs()
    label = lung.astype(np.int16)
    depth = np.stack([ndimage.distance_transform_edt(lung[..., k]) * 2 for k in range(SIZE[2])], axis=-1)
    x, y, z = np.meshgrid(*(np.arange(n) * s for n, s in zip(SIZE, SPACING)), indexing="ij")
    for side in (48, 132):
        if kind == "rim":
            label[lung & (depth < 7) & (z < 32) & (np.abs(y - rng.uniform(40, 120)) < 26) & (np.abs(x - side) > 8)] = 3
        else:
            centre = side + rng.uniform(-4, 4), rng.uniform(70, 90), rng.uniform(60, 80)
            radius = rng.uniform(9, 14)
            label[((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) < radius**2] = 3
    return label


@functools.cache
def lesions(kind: str):
    found = [find_lesions(f"p{seed}", patient(kind, seed), None, SPACING, {"any": 3}) for seed in range(8)]
    return [lesion for some in found for lesion in some]


def receiver():
    return Receiver(lungs().astype(np.int16), None, SPACING, healthy=1)


@functools.cache
def grown(kind: str, count: int = 16) -> list[dict]:
    model, rng, rows = LesionModel(lesions(kind)), np.random.default_rng(1), []
    for _ in range(count):
        ct = receiver()
        if model.grow(ct, 3, rng):
            rows.append(measures(ct.target == 3, ct.depth_mm, ct.height, SPACING))
    return rows


def median(rows: list[dict], name: str) -> float:
    return float(np.median([row[name] for row in rows]))


@pytest.mark.parametrize("kind", ["rim", "ball"])
def test_grown_lesions_are_like_those_of_the_patients(kind):
    data, new = [lesion.measures for lesion in lesions(kind)], grown(kind)
    assert len(new) == 16
    assert median(new, "volume_ml") == pytest.approx(median(data, "volume_ml"), rel=0.4)
    assert median(new, "depth_mm") == pytest.approx(median(data, "depth_mm"), rel=0.35)
    assert median(new, "height") == pytest.approx(median(data, "height"), abs=0.12)
    assert median(new, "elongation") == pytest.approx(median(data, "elongation"), rel=0.45)


def test_kinds_of_lesion_stay_apart_although_the_model_knows_no_tissue():
    rim, ball = grown("rim"), grown("ball")
    assert median(rim, "depth_mm") < 0.6 * median(ball, "depth_mm")
    assert median(rim, "height") + 0.3 < median(ball, "height")
    assert median(rim, "elongation") > 1.4 * median(ball, "elongation")


def test_lesion_is_one_piece_of_healthy_lung_with_the_voxels_returned():
    ct, model = receiver(), LesionModel(lesions("ball"))
    ct.target[:, :40] = np.where(ct.target[:, :40] == 1, 2, 0)
    before, room = ct.target.copy(), ct.room
    voxels = model.grow(ct, 3, np.random.default_rng(0))
    new = ct.target == 3
    assert voxels == new.sum() >= 24 and ndimage.label(new)[1] == 1
    assert (before[new] == 1).all() and np.array_equal(before[~new], ct.target[~new])
    assert ct.room == room - voxels


def test_lesions_of_one_tissue_do_not_touch():
    ct, model, rng = receiver(), LesionModel(lesions("ball")), np.random.default_rng(0)
    count = sum(model.grow(ct, 3, rng) > 0 for _ in range(6))
    assert count > 2 and ndimage.label(ct.target == 3)[1] == count


def test_same_seed_same_lesion_and_another_seed_another():
    def target(seed):
        ct = receiver()
        LesionModel(lesions("ball")).grow(ct, 3, np.random.default_rng(seed))
        return ct.target

    assert np.array_equal(target(0), target(0))
    assert not np.array_equal(target(0), target(1))


def test_lung_without_room_takes_nothing():
    ct = receiver()
    ct.target[ct.target == 1] = 2
    before = ct.target.copy()
    assert LesionModel(lesions("ball")).grow(ct, 3, np.random.default_rng(0)) == 0
    assert np.array_equal(ct.target, before)


def test_one_lesion_is_enough_and_one_slice_too():
    (one, *_) = lesions("ball")
    label = lungs()[..., 5:6].astype(np.int16)
    flat = Receiver(label, None, SPACING, healthy=1)
    assert LesionModel([one]).grow(flat, 3, np.random.default_rng(0)) == (flat.target == 3).sum() > 24


def test_draws_vary_around_the_lesions_and_stay_in_their_range():
    model, rng = LesionModel(lesions("rim")), np.random.default_rng(0)
    data = [lesion.measures for lesion in lesions("rim")]
    drawn = [model.draw(rng) for _ in range(400)]
    for name in data[0]:
        values = np.array([_to_model(name, row[name]) for row in data])
        new = np.array([_to_model(name, row[name]) for row in drawn])
        assert new.mean() == pytest.approx(values.mean(), abs=0.2 * max(values.std(), 0.1))
        assert len(np.unique(new.round(6))) > 100
        assert 0 <= _from_model("height", 1.5) <= 1


def test_measures_of_an_ellipsoid_and_of_a_shell():
    x, y, z = np.meshgrid(*[np.arange(-30, 31)] * 3, indexing="ij")
    solid = (x / 24) ** 2 + (y / 12) ** 2 + (z / 12) ** 2 < 1
    depth, height, spacing = np.full(solid.shape, 7.0), np.linspace(0, 1, 61), np.ones(3)
    found = measures(solid, depth, height, spacing)
    assert found["volume_ml"] == pytest.approx(4 / 3 * np.pi * 24 * 12 * 12 / 1000, rel=0.02)
    assert found["fullness"] == pytest.approx(1, abs=0.03) and found["elongation"] == pytest.approx(2, rel=0.03)
    assert (found["depth_mm"], found["depth_spread_mm"], found["height"]) == (7.0, 0.0, pytest.approx(0.5))
    shell = solid & ((x / 20) ** 2 + (y / 8) ** 2 + (z / 8) ** 2 > 1)
    assert measures(shell, depth, height, spacing)["fullness"] < 0.6
