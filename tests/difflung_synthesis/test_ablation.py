"""CBMAT's properties (`docs/method.md`): each follows from the definition, none from the implementation."""

import pytest
import torch
from scripts.ablation import ClassBalancedMaskAblation, exposure, keep_probability
from scripts.measure import tissue_presence
from scripts.tissue_channels import UNKNOWN, condition_channels

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4, "consolidation": 5}
PRESENCE = torch.tensor([0.85, 0.35, 0.25, 0.10, 0.06])
SAMPLES = 4000


def maps(samples=SAMPLES):
    """Every tissue and background, two voxels each, in each sample."""
    return torch.arange(6).repeat_interleave(2).view(1, 1, 3, 4).repeat(samples, 1, 1, 1)


def hidden_share(ablation, samples=SAMPLES):
    """Return whether tissue k is hidden in sample i, shape (samples, 5)."""
    ablated = ablation(maps(samples), torch.Generator().manual_seed(0)).flatten(1)
    return (ablated[:, 2::2] == UNKNOWN).float()


def test_gamma_0_half_without_rho_is_konz_drawn_per_sample():
    hidden = hidden_share(ClassBalancedMaskAblation(LABELS, gamma=0, q_max=0.5, q_min=0, rho=0, presence=PRESENCE))
    assert torch.allclose(hidden.mean(0), torch.full((5,), 0.5), atol=0.03)
    correlation = torch.corrcoef(hidden.T)
    assert (correlation - torch.eye(5)).abs().max() < 0.06  # independent between tissues
    assert torch.corrcoef(torch.stack([hidden[:-1, 0], hidden[1:, 0]]))[0, 1].abs() < 0.06  # and between samples


def test_gamma_1_without_bounds_gives_every_tissue_the_same_exposure():
    keep = keep_probability(PRESENCE, gamma=1, q_min=0, q_max=0.9)
    rates = exposure(PRESENCE, keep, rho=0)
    assert torch.allclose(rates, rates[0].expand(5), rtol=1e-5)


def test_measured_exposure_agrees_with_the_formula():
    ablation = ClassBalancedMaskAblation(LABELS, gamma=1, rho=0.25, presence=PRESENCE)
    visible = 1 - hidden_share(ablation).mean(0)
    assert torch.allclose(PRESENCE * visible, exposure(PRESENCE, ablation.keep, 0.25), atol=0.03)


def test_every_subset_of_tissues_occurs_and_the_full_mask_at_least_as_often_as_rho():
    hidden = hidden_share(ClassBalancedMaskAblation(LABELS, rho=0.1, presence=[0.5, 0.4, 0.3, 0.3, 0.2]), 60000)
    subsets = {tuple(row) for row in hidden.int().tolist()}
    assert len(subsets) == 2**5
    assert (hidden.sum(1) == 0).float().mean() >= 0.1


@pytest.mark.parametrize(("gamma", "rho", "wanted"), [(0, 0, 14.2), (1, 0, 1.6), (1, 0.1, 3.0), (1, 0.25, 5.0)])
def test_spread_of_exposure_is_the_one_the_method_states(gamma, rho, wanted):
    bounds = {"q_min": 0.5, "q_max": 0.5} if gamma == 0 else {"q_min": 0.1, "q_max": 0.9}
    rates = exposure(PRESENCE, keep_probability(PRESENCE, gamma, **bounds), rho)
    assert (rates.max() / rates.min()).item() == pytest.approx(wanted, abs=0.06)


def test_unknown_is_not_background():
    ablated = ClassBalancedMaskAblation(LABELS, q_min=0, q_max=0, rho=0, presence=PRESENCE)(maps(1))
    channels = condition_channels(ablated, LABELS)
    assert channels.shape == (1, 6, 3, 4)
    assert (ablated[maps(1) == 0] == 0).all()
    assert torch.equal(channels[:, -1:] == 1, maps(1) != 0)
    assert channels[:, :-1].sum() == 0


def test_one_tissue_stays_visible_where_not_all_may_be_hidden():
    """P(k visible) of independent draws, and its share of the samples that would show nothing."""
    settings = {"gamma": 0, "q_min": 0, "q_max": 0.3, "rho": 0.2, "presence": PRESENCE}
    whole = hidden_share(ClassBalancedMaskAblation(LABELS, **settings))
    hidden = hidden_share(ClassBalancedMaskAblation(LABELS, **settings, hide_all=False))
    nothing = 0.8 * 0.7**5
    assert whole.all(dim=1).float().mean().item() == pytest.approx(nothing, abs=0.02)
    assert not hidden.all(dim=1).any()
    expected = torch.full((5,), 0.8 * 0.7 - nothing / 5)
    assert torch.allclose(hidden.mean(dim=0), expected, atol=0.03)
    unlike = torch.tensor([[0.0, 2.0], [-1.0, -1.0], [0.0, 0.0]]).view(3, 1, 1, 2)  # one tissue; UNKNOWN; no lung
    ablation = ClassBalancedMaskAblation(LABELS, **settings | {"q_max": 0.0}, hide_all=False)
    assert torch.equal(ablation(unlike), unlike)


def test_absent_tissue_is_left_out():
    keep = keep_probability(torch.tensor([0.8, 0.4, 0.0]), gamma=1, q_min=0, q_max=0.8)
    assert keep.tolist() == pytest.approx([0.4, 0.8, 0.8])


def test_no_tissue_at_all_is_refused():
    with pytest.raises(ValueError, match="no tissue occurs"):
        keep_probability(torch.zeros(5))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"rho": 1.5}, r"rho must be a probability in \[0, 1\], not 1.5"),
    ({"q_min": 0.9, "q_max": 0.2}, "q_min=0.9 and q_max=0.2"),
    ({"gamma": -1}, "gamma must be at least 0, not -1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedMaskAblation(LABELS, presence=PRESENCE, **arguments)


def test_use_before_measuring_is_refused():
    with pytest.raises(RuntimeError, match="MeasurePresence"):
        ClassBalancedMaskAblation(LABELS)(maps(1))


def test_presence_counts_tissues_of_at_least_tau_voxels():
    label = torch.zeros(1, 1, 4, 4)
    label[0, 0, 0, :3] = 2
    label[0, 0, 1, :2] = 5
    assert tissue_presence(label, LABELS, min_voxels=3).tolist() == [[False, True, False, False, False]]


def test_label_without_a_name_is_refused():
    with pytest.raises(ValueError, match="holds label 7, but labels name only background=0, healthy=1"):
        condition_channels(torch.full((1, 1, 2, 2), 7), LABELS)
