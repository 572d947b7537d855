import pytest
import torch
from scripts.attributes import Attributes
from scripts.prior import COMPONENTS, log_density
from scripts.prior_weights import PatientWeights, component_weights
from scripts.scan import ENTRIES

ATTRIBUTES = Attributes({"severity": [0, 1], "history": ["none", "smoker"]})
MEANS = torch.linspace(-2, 2, COMPONENTS).expand(1, 2, COMPONENTS)  # two tissues
DEVIATIONS = torch.full((1, 2, COMPONENTS), 0.1)
BESIDE_TOLD, NOTHING_TOLD = 0, 1
PATIENTS = [{"severity": index / 15, "history": word} for index in range(16) for word in ("none", "smoker")]
DENSE = [0.1 + 0.5 * patient["severity"] + 0.2 * (patient["history"] == "smoker") for patient in PATIENTS]


def drawn(dense_share, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(1, 2000, generator=generator) < dense_share
    return torch.where(dense, 1.5, -1.5) + 0.3 * torch.randn(1, 2000, generator=generator)


def vector(patient):
    return torch.tensor([*ATTRIBUTES.encode(patient), 1.0, 0.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def fitted():
    """Weights of patients whose first tissue, and whose lung, hold a dense share that severity and history decide."""
    histograms = [(vector(p), 0, drawn(share, index)) for index, (p, share) in enumerate(zip(PATIENTS, DENSE))]
    counts = [torch.tensor([[(1 - share) * 500], [share * 500]]) for share in DENSE]
    shares = [(vector(p), NOTHING_TOLD, count) for p, count in zip(PATIENTS, counts)]
    return fit(histograms, shares)


def fit(histograms, shares):
    torch.manual_seed(0)
    weights = PatientWeights(ATTRIBUTES.size + ENTRIES, 1, 2)
    weights.fit(histograms, shares, MEANS, DEVIATIONS, ATTRIBUTES)
    return weights


def mean(weights, patient, tissue):
    return (weights(vector(patient)[None])[0][0, 0, tissue].softmax(dim=0) * MEANS[0, 0]).sum().item()


def dense_share(weights, patient, row):
    return weights(vector(patient)[None])[1][0, row].softmax(dim=0)[1].item()


def test_component_weights_are_those_that_the_values_were_drawn_with():
    wanted = torch.zeros(COMPONENTS)
    wanted[2], wanted[9] = 0.25, 0.75
    values = torch.cat([MEANS[0, 0, 2].expand(500), MEANS[0, 0, 9].expand(1500)]).view(1, 1, 1, -1)
    values = values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    found = component_weights(log_density(values, MEANS[:, :1].unsqueeze(3), DEVIATIONS[:, :1].unsqueeze(3)))
    assert found[0, 0].sum().item() == pytest.approx(1, abs=1e-4)
    assert found[0, 0].tolist() == pytest.approx(wanted.tolist(), abs=0.03)


def test_fit_learns_what_severity_and_history_do_to_the_histogram_of_a_tissue(fitted):
    for severity in (0.2, 0.5, 0.8):  # of histories, half are smokers
        assert mean(fitted, {"severity": severity}, 0) == pytest.approx(-1.5 + 3 * (0.2 + 0.5 * severity), abs=0.2)
    both = [mean(fitted, {"history": word}, 0) for word in ("none", "smoker")]
    assert both[1] - both[0] == pytest.approx(0.6, abs=0.25)
    assert mean(fitted, {}, 0) == pytest.approx(-1.5 + 3 * 0.45, abs=0.2)
    assert mean(fitted, {"severity": 0.8}, 1) == pytest.approx(0, abs=0.2)  # these samples say nothing of the other one
    assert not any(parameter.requires_grad for parameter in fitted.parameters())  # training leaves them alone


def test_fit_learns_what_severity_and_history_do_to_the_shares_of_the_tissues(fitted):
    for severity in (0.2, 0.5, 0.8):
        assert dense_share(fitted, {"severity": severity}, NOTHING_TOLD) == pytest.approx(
            0.2 + 0.5 * severity, abs=0.06
        )
    both = [dense_share(fitted, {"history": word}, NOTHING_TOLD) for word in ("none", "smoker")]
    assert both == pytest.approx([0.35, 0.55], abs=0.06)
    assert dense_share(fitted, {}, NOTHING_TOLD) == pytest.approx(0.45, abs=0.06)
    assert dense_share(fitted, {"severity": 0.8}, BESIDE_TOLD) == pytest.approx(0.5, abs=0.06)


def test_fit_without_enough_voxels_changes_nothing():
    few = [(vector({}), 0, torch.zeros(1, 3))], [(vector({}), 1, torch.ones(2, 1))]
    assert all(part.abs().max() == 0 for part in fit(*few)(vector({"severity": 0.5})[None]))
