"""Batches do not depend on who makes them, and the average of weights is that of ignite."""

import os

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    OneOf,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandLambdad,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
)
from scripts import weight_average
from scripts.seeded_loader import SeededLoader, loader_workers, reseed
from scripts.weight_average import WeightAverage
from torch.utils.data import RandomSampler


def drawn(batch):
    """Draw from the global randomness, as a synthesizer's batch is drawn."""
    return batch | {"t": torch.rand(len(batch["image"]))}


def loader(workers, **settings):
    transform = Compose([
        RandSpatialCropSamplesd("image", roi_size=[4, 4], num_samples=2, random_size=False),
        RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.9),
    ])  # fmt: skip
    items = [{"image": torch.arange(64.0).view(1, 8, 8) + 100 * number} for number in range(5)]
    dataset = CacheDataset(items, transform, progress=False)
    return SeededLoader(dataset, batch_size=2, num_workers=workers, **settings)


def epochs(workers, seed=3, **settings):
    """Return the batches of two epochs, between which the main process draws too, and what it drew."""
    torch.manual_seed(seed)
    torch.rand(1)  # as the network's weights are drawn before the loader is made
    made, batches, own = loader(workers, **settings), [], []
    for _ in range(2):
        for batch in made:
            batches.append(batch)
            own.append(torch.rand(3))
    return batches, own


@pytest.mark.parametrize("order", [{"shuffle": True}, {"sampler": RandomSampler(range(5), True, 9)}, {}])
def test_any_number_of_workers_makes_the_same_batches(order):
    (one, own), *others = (epochs(workers, draw=drawn, **order) for workers in (0, 1, 3))
    assert len(one) == (10 if "sampler" in order else 6)
    for batches, others_own in others:
        for a, b in zip(one, batches, strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["t"], b["t"])
        assert all(torch.equal(a, b) for a, b in zip(own, others_own, strict=True))
    assert not torch.equal(one[0]["image"], one[len(one) // 2]["image"]), "another epoch"
    assert not torch.equal(one[0]["image"], epochs(0, seed=4, draw=drawn, **order)[0][0]["image"]), "another seed"
    assert one[0]["image"].shape == (4, 1, 4, 4) and len({float(t) for batch in one for t in batch["t"]}) > 15


class Own(RandLambdad):
    """A transform that seeds itself in its own way."""

    def set_random_state(self, seed=None, state=None):
        return super().set_random_state(seed + 1, state)


def test_generators_that_are_kept_draw_what_new_ones_would():
    def pipeline():
        crops = [RandSpatialCropd("image", size, random_size=False) for size in ([6, 6], [4, 4])]
        affine = RandAffined("image", prob=0.9, rotate_range=[0.5])
        own = Own("image", lambda image: image + 1, prob=0.5)
        return Compose([OneOf([Compose(crops[:1]), crops[1]]), affine, own, RandGaussianNoised("image", prob=0.5)])

    kept, item, drawn = pipeline(), {"image": torch.rand(1, 8, 8)}, set()
    for seed in (0, 7, 2**31 - 1, 2**32 + 5, 7):
        reseed(kept, seed)
        expected, found = (some(item)["image"] for some in (pipeline().set_random_state(seed), kept))
        assert torch.equal(expected, found)
        drawn.add(float(found.sum()))
    assert len(drawn) == 4


def test_seeding_a_batch_leaves_the_randomness_of_a_gpu_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    assert len(list(loader(0))) == 3 and not seeded


@pytest.mark.parametrize(
    ("cores", "variables", "workers"),
    [(1, {}, 0), (2, {}, 0), (4, {}, 2), (64, {}, 8), (64, {"LOCAL_WORLD_SIZE": "8"}, 4),
     (64, {"OMP_NUM_THREADS": "1"}, 0), (16, {"LOCAL_WORLD_SIZE": "8"}, 0)],
)  # fmt: skip
def test_workers_have_cores_of_their_own(cores, variables, workers, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert loader_workers() == workers


@pytest.mark.parametrize("buffers", ["copy", "update"])
def test_the_average_is_that_of_ignite_bit_for_bit(buffers):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(6, 2))
    averages = [kind(network, momentum=0.3, handle_buffers=buffers) for kind in (EMAHandler, WeightAverage)]
    engine = Engine(lambda engine, batch: network(torch.randn(2, 1, 8, 8)))
    for number, average in enumerate(averages):
        average.attach(engine, f"momentum{number}")

    def learn():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))

    engine.add_event_handler(Events.EPOCH_STARTED, learn)
    engine.run(range(2), max_epochs=2)
    one, other = (average.ema_model.state_dict() for average in averages)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["0.weight"], network[0].weight)
    assert torch.equal(one["1.running_mean"], network[1].running_mean) == (buffers == "copy")


def test_all_processes_validate_the_average_that_the_first_one_saves(monkeypatch):
    network, seen = torch.nn.BatchNorm1d(3), []
    average, engine = WeightAverage(network, momentum=0.3, handle_buffers="update"), Engine(lambda engine, batch: None)
    monkeypatch.setattr(weight_average.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(weight_average.idist, "broadcast", lambda tensor, src: torch.full_like(tensor, 7))
    average.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(average.ema_model.running_mean.tolist()))
    engine.run([1])
    assert seen == [[7, 7, 7]] and network.running_mean.tolist() == [0, 0, 0]
