import pytest
import torch
from scripts.attributes import Attributes
from scripts.patient import PatientWeights, component_weights
from scripts.prior import COMPONENTS, log_density

ATTRIBUTES = Attributes({"severity": [0, 1], "history": ["none", "smoker"]})
MEANS = torch.linspace(-2, 2, COMPONENTS).expand(1, 3, COMPONENTS)  # two tissues and the lung
DEVIATIONS = torch.full((1, 3, COMPONENTS), 0.1)


def drawn(dense_share, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(1, 2000, generator=generator) < dense_share
    return torch.where(dense, 1.5, -1.5) + 0.3 * torch.randn(1, 2000, generator=generator)


def fitted(samples):
    torch.manual_seed(0)
    weights = PatientWeights(ATTRIBUTES.size + 2, 1, 2)
    weights.fit(samples, MEANS, DEVIATIONS, ATTRIBUTES)
    return weights


def vector(patient):
    return torch.tensor([*ATTRIBUTES.encode(patient), 1.0, 0.0])


def mean(weights, patient, row):
    return (weights(vector(patient)[None])[0, 0, row].softmax(dim=0) * MEANS[0, 0]).sum().item()


def test_component_weights_are_those_that_the_values_were_drawn_with():
    wanted = torch.zeros(COMPONENTS)
    wanted[2], wanted[9] = 0.25, 0.75
    values = torch.cat([MEANS[0, 0, 2].expand(500), MEANS[0, 0, 9].expand(1500)]).view(1, 1, 1, -1)
    values = values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    found = component_weights(log_density(values, MEANS[:, :1].unsqueeze(3), DEVIATIONS[:, :1].unsqueeze(3)))
    assert found[0, 0].sum().item() == pytest.approx(1, abs=1e-4)
    assert found[0, 0].tolist() == pytest.approx(wanted.tolist(), abs=0.03)


def test_fit_learns_what_severity_and_history_do_to_a_lung_of_which_nothing_is_told():
    severities = [index / 15 for index in range(16)]
    patients = [{"severity": s, "history": word} for s in severities for word in ("none", "smoker")]
    shares = [0.1 + 0.5 * p["severity"] + 0.2 * (p["history"] == "smoker") for p in patients]
    weights = fitted([(vector(p), 3, drawn(share, index)) for index, (p, share) in enumerate(zip(patients, shares))])
    for severity in (0.2, 0.5, 0.8):  # of histories, half are smokers
        assert mean(weights, {"severity": severity}, 3) == pytest.approx(-1.5 + 3 * (0.2 + 0.5 * severity), abs=0.2)
    both = [mean(weights, {"history": word}, 3) for word in ("none", "smoker")]
    assert both[1] - both[0] == pytest.approx(0.6, abs=0.25)
    assert mean(weights, {}, 3) == pytest.approx(-1.5 + 3 * 0.45, abs=0.2)
    assert not any(parameter.requires_grad for parameter in weights.parameters())  # training leaves them alone
    # the lung beside tissues that are told has weights of its own, which these samples say nothing of
    assert mean(weights, {"severity": 0.8}, 2) == pytest.approx(0, abs=0.2)


def test_fit_without_enough_voxels_changes_nothing():
    weights = fitted([(vector({}), 0, torch.zeros(1, 3))])
    assert weights(vector({"severity": 0.5})[None]).abs().max() == 0
