"""A classifier of two sets of tiles, and the area under its curve on patients it has not seen."""

import numpy as np
import pytest
from scripts.classifier import Classifier, area_under_curve, crossed_auc


def tiles(seed, spread=1.0, number=80):
    return np.random.default_rng(seed).normal(0, spread, (number, 3))


def test_sets_of_one_distribution_cannot_be_told_apart_and_others_can():
    alike = crossed_auc([[tiles(0), tiles(1)], [tiles(2), tiles(3)]])
    assert alike == pytest.approx(0.5, abs=0.1)
    assert crossed_auc([[tiles(0) + 3, tiles(1)], [tiles(2) + 3, tiles(3)]]) > 0.95


def test_a_set_that_lies_between_others_is_enclosed():
    """Real tissue is neither too flat nor too noisy: a straight border cannot tell it from both."""
    model = Classifier(tiles(0), np.concatenate([tiles(1) - 4, tiles(2) + 4]))
    for other in (tiles(3) - 4, tiles(4) + 4):
        assert area_under_curve(model.score(tiles(5)), model.score(other)) > 0.95


def test_too_few_tiles_give_no_area_and_an_empty_set_is_refused():
    assert np.isnan(crossed_auc([[tiles(0), tiles(1)], [tiles(2), tiles(3, number=5)]]))
    with pytest.raises(ValueError, match="tiles of both sets, not 80 and 0"):
        Classifier(tiles(0), tiles(1, number=0))
