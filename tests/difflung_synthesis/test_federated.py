"""Two sites that share nothing but weights and counts measure what one site with the patients of both would."""

import pytest
import torch
from ignite.engine import Engine
from scripts.ablation import ClassBalancedMaskAblation
from scripts.autoencoder import TissueAutoencoder
from scripts.federated import BINS, MeasureTogether, NetworkAndAverage, Shared
from scripts.measure import MeasurePresence
from scripts.network import TissueDenoiser
from scripts.prior_weights import PatientWeights

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4, "consolidation": 5}
MEANS = [0.0, -0.7, -0.4, -0.2, -0.9, 0.1]  # of each label, in [-1, 1]


def network():
    torch.manual_seed(0)
    return TissueDenoiser(LABELS, channels=(8, 16), num_head_channels=8, norm_num_groups=4)


def pair(kind=Shared):
    return kind(network(), network())


def patch(seed, tissues, shift=0.0):
    """A case of one patch, 32 x 32, that holds background and some tissues in stripes."""
    generator = torch.Generator().manual_seed(seed)
    stripes = torch.tensor([0, *tissues])[torch.arange(32) % (len(tissues) + 1)]
    label = stripes.view(1, 32, 1, 1).expand(1, 32, 32, 1)
    noise = 0.05 * torch.randn(label.shape, generator=generator)
    return {"image": torch.tensor(MEANS)[label] + noise + shift, "label": label}


ONE = [patch(0, [1, 2]), patch(1, [1, 3]), patch(2, [1, 4])]
OTHER = [patch(3, [1, 2, 5], shift=0.05)]  # has all the consolidation


def measure(dataset, both):
    ablation = ClassBalancedMaskAblation(LABELS)
    return MeasureTogether(dataset, ablation, both, LABELS, num_patches=12), ablation


def start(handler):
    """Let an engine of three steps start with the handler; return how many it made."""
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run(range(3), max_epochs=1)
    return engine.state.iteration


@pytest.fixture(scope="module")
def sites():
    """Two sites after they have measured, shared and started again, each with its handler and ablation."""
    made = [(dataset, pair()) for dataset in (ONE, OTHER)]
    handlers = [measure(dataset, both) for dataset, both in made]
    assert [start(handler) for handler, _ in handlers] == [0, 0]  # no step before all know of all
    states = [both.state_dict() for _, both in made]
    mean = {name: (3 * states[0][name] + states[1][name]) / 4 for name in states[0]}  # by their numbers of cases
    for _, both in made:
        both.load_state_dict(mean)
    assert [start(handler) for handler, _ in handlers] == [3, 3]
    return [(both.network, handler, ablation) for (_, both), (handler, ablation) in zip(made, handlers)]


def test_both_sites_get_the_prior_of_all_patients(sites, monkeypatch):
    monkeypatch.setattr(PatientWeights, "fit", lambda *given: None)  # takes seconds, and is not shared
    pooled = network()
    MeasurePresence(ONE + OTHER, ClassBalancedMaskAblation(LABELS), pooled, LABELS, num_patches=12)(
        Engine(lambda engine, batch: None)
    )
    bin_width = 2 * pooled.data_scale / BINS
    for own, _, _ in sites:
        assert torch.allclose(own.tissue_presence, pooled.tissue_presence)
        assert (own.tissue_mean - pooled.tissue_mean).abs().mean() < bin_width
        assert (own.tissue_deviation - pooled.tissue_deviation).abs().mean() < bin_width
    assert torch.equal(sites[0][0].tissue_mean, sites[1][0].tissue_mean)


def test_a_tissue_that_one_site_lacks_keeps_the_histogram_of_the_other(sites):
    own = sites[0][0]
    assert own.tissue_mean[0, 4].mean() / own.data_scale == pytest.approx(MEANS[5] + 0.05, abs=0.01)


def test_the_presence_of_all_patients_decides_the_ablation(sites):
    wanted = ClassBalancedMaskAblation(LABELS, presence=[1, 0.5, 0.25, 0.25, 0.25]).keep
    for _, _, ablation in sites:
        assert torch.allclose(ablation.keep, wanted)


def test_later_rounds_measure_nothing(sites):
    own, handler, _ = sites[0]
    before = own.tissue_mean.clone()
    handler.shared.histograms.zero_()
    assert start(handler) == 3
    assert torch.equal(own.tissue_mean, before)


def test_a_latent_network_is_refused():
    autoencoder = TissueAutoencoder(spatial_dims=2, channels=(8, 16), latent_channels=2)
    latent = TissueDenoiser(LABELS, channels=(8, 16), num_head_channels=8, norm_num_groups=4, autoencoder=autoencoder)
    with pytest.raises(ValueError, match="sites can train together in pixel space only"):
        Shared(latent, latent)


def test_what_travels_is_floating_point_tensors_of_network_and_average():
    state = pair().state_dict()
    assert all(value.is_floating_point() for value in state.values())
    assert {name.split(".")[0] for name in state} == {"network", "average", "histograms"}
    assert "network._extra_state" not in state and "average.tissue_mean" in state
    counting = NetworkAndAverage(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)).state_dict()
    assert "network.running_mean" in counting and "network.num_batches_tracked" not in counting


def test_the_network_answers_in_training_and_its_average_else():
    both = NetworkAndAverage(torch.nn.Linear(2, 1), torch.nn.Linear(2, 1))
    x = torch.randn(3, 2)
    assert torch.equal(both.train()(x), both.network(x)) and both.module is both.network
    assert torch.equal(both.eval()(x), both.average(x)) and both.module is both.average


def test_shared_weights_that_lack_a_tensor_are_refused():
    state = pair().state_dict()
    del state["average.tissue_mean"]
    with pytest.raises(ValueError, match="the shared weights lack average.tissue_mean and 0 more"):
        pair().load_state_dict(state)
