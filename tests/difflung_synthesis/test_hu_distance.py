"""The HU distance against shifts whose distance is known."""

import pytest
import torch
from ignite.engine import Engine
from scripts.hu_distance import HuWasserstein

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


def case(shift, seed):
    real = -700 + 50 * torch.randn(1, 60, 60, 4, generator=torch.Generator().manual_seed(seed))
    tissue = torch.zeros(1, 60, 60, 4)
    tissue[:, :30] = 2
    return real + shift, torch.cat([real, tissue])


def run(shift):
    metric = HuWasserstein(LABELS)
    engine = Engine(lambda engine, batch: batch)
    metric.attach(engine, "hu")
    cases = [case(shift, seed) for seed in range(4)]
    engine.run([([painted], [reference]) for painted, reference in cases])
    return engine.state.metrics


@pytest.mark.parametrize("shift", [0.0, 30.0, -120.0])
def test_distance_of_shifted_tissue_is_the_shift(shift):
    metrics = run(shift)
    assert metrics["hu_ground_glass"] == pytest.approx(abs(shift), abs=1.5)
    assert metrics["hu"] == pytest.approx(metrics["hu_ground_glass"])
    assert 0 < metrics["hu_floor_ground_glass"] < 3


def test_tissues_that_do_not_occur_are_absent():
    assert not [name for name in run(0.0) if "emphysema" in name or "healthy" in name]
