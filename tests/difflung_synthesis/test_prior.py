"""The flow of independent voxels: against closed forms, and against the histogram that it must give."""

import pytest
import torch
from scipy.stats import wasserstein_distance
from scripts import prior, samplers
from scripts.prior import COMPONENTS, fit_mixture, mean_velocity, merge, moments, velocity


def spread_out(values):
    """Return one mixture, shape (2, M), for a row of voxels: means, deviations, logits of shape (1, 1, M, 1, 1)."""
    return tuple(part.view(1, 1, -1, 1, 1) for part in (*values, torch.zeros_like(values[0])))


def times(*values):
    return tuple(torch.tensor(value).view(1, 1, 1, 1) for value in values)


def test_one_component_is_the_normal_distribution():
    """Its flow keeps quantiles: (x_r - (1 - r) m) / s_r = (x_t - (1 - t) m) / s_t."""
    m, d, t, r = -0.6, 0.3, 0.9, 0.4
    x = torch.linspace(-2, 2, 9).view(1, 1, 1, 9)
    s_t, s_r = (((1 - time) ** 2 * d**2 + time**2) ** 0.5 for time in (t, r))
    after = (1 - r) * m + s_r / s_t * (x - (1 - t) * m)
    normal = spread_out(torch.tensor([[m], [d]]))
    assert torch.allclose(x - (t - r) * mean_velocity(x, *times(t, t - r), *normal), after, atol=6e-3)
    expected = (t - (1 - t) * d**2) / s_t**2 * (x - (1 - t) * m) - m
    assert torch.allclose(velocity(x, *times(t), *normal), expected, atol=1e-6)
    assert torch.allclose(mean_velocity(x, *times(t, 0.0), *normal), expected, atol=1e-2)


def two_peaks(voxels):
    """Return values of a honeycomb: air, and thin walls of another mean; shape (1, voxels)."""
    generator = torch.Generator().manual_seed(0)
    air, wall = (torch.randn(1, voxels, generator=generator) * d + m for m, d in ((-1.2, 0.5), (1.2, 0.25)))
    return torch.where(torch.rand(1, voxels, generator=generator) < 0.7, air, wall)


@pytest.mark.parametrize(("steps", "few"), [(8, False), (2, True), (1, True)])
def test_samples_have_the_histogram_of_the_values(steps, few):
    values = two_peaks(20000)
    mixture = spread_out(fit_mixture(values, 0.01))
    noise = torch.randn((1, 1, 1, 20000), generator=torch.Generator().manual_seed(1))

    def field(x, t, interval=None):
        return velocity(x, *times(t), *mixture) if interval is None else mean_velocity(x, *times(t, interval), *mixture)

    sampled = (samplers.few_step if few else samplers.heun)(field, noise, steps).flatten()
    one_normal = values.mean() + values.std() * noise.flatten()
    distances = [wasserstein_distance(kind, values.flatten()) for kind in (sampled, one_normal)]
    assert distances[0] < 0.09 and distances[1] > 0.25


def test_mixture_has_the_moments_of_the_values():
    values = torch.cat([two_peaks(5000), torch.randn(1, 5000, generator=torch.Generator().manual_seed(2))])
    means, deviations = fit_mixture(values, 0.01)
    assert means.shape == deviations.shape == (2, COMPONENTS)
    mixture = [part[None, ..., None, None] for part in (means, deviations, torch.zeros_like(means))]
    mean, deviation = moments(*mixture)
    assert torch.allclose(mean.flatten(), values.mean(dim=1), atol=0.01)
    assert torch.allclose(deviation.flatten(), values.std(dim=1), rtol=0.03)
    assert torch.equal(fit_mixture(torch.zeros(1, 100), 0.05)[1], torch.full((1, COMPONENTS), 0.05))


@pytest.mark.parametrize("tissues", [1, 5, 6, COMPONENTS])
def test_merged_tissues_keep_their_moments_and_have_their_shares(tissues):
    generator = torch.Generator().manual_seed(0)
    means, deviations = (torch.rand(2, tissues, COMPONENTS, generator=generator) + offset for offset in (-1, 0.1))
    means = means.sort(dim=2).values
    logits = torch.randn(3, 2, tissues, COMPONENTS, generator=generator)
    shares = torch.randn(3, tissues, generator=generator).softmax(dim=1)
    merged = merge(means, deviations, logits, shares.log() + 5)
    assert all(part.shape == (3, 2, COMPONENTS) for part in merged)
    each, of_all = COMPONENTS // tissues, merged[2].softmax(dim=2)
    assert torch.allclose(of_all[..., : each * tissues].unflatten(2, (tissues, each)).sum(3)[:, 0], shares, atol=1e-5)
    assert not of_all[..., each * tissues :].any()
    weights = logits.softmax(dim=3)
    first = (weights * means).sum(dim=3)
    second = (weights * (means**2 + deviations**2)).sum(dim=3)
    mean = (shares[:, None] * first).sum(dim=2)
    variance = (shares[:, None] * second).sum(dim=2) - mean**2
    found = moments(*merged)
    assert torch.allclose(found[0], mean, atol=1e-5) and torch.allclose(found[1], variance.sqrt(), atol=1e-5)


def test_weights_change_the_histogram():
    """All weight on the walls of a honeycomb leaves walls; adding a constant to the logits changes nothing."""
    means, deviations, logits = spread_out(fit_mixture(two_peaks(20000), 0.01))
    walls = torch.where(means > 0.6, 0.0, -30.0)
    noise = torch.randn((1, 1, 1, 5000), generator=torch.Generator().manual_seed(1))
    sampled = samplers.heun(lambda x, t: velocity(x, *times(t), means, deviations, walls), noise, 8)
    mean, deviation = moments(means, deviations, walls)
    assert mean.item() == pytest.approx(1.25, abs=0.05) and deviation.item() < 0.4
    assert sampled.mean().item() == pytest.approx(mean.item(), abs=0.02) and (sampled > 0.3).all()
    shifted = velocity(noise, *times(0.5), means, deviations, logits + 7)
    assert torch.allclose(shifted, velocity(noise, *times(0.5), means, deviations, logits), atol=1e-5)


def test_between_two_told_tissues_the_mixture_changes_gradually_and_unknown_and_background_stay():
    """The failure that was shown: HU that jump at the label's edge made painted borders 1.8 times as sharp as real."""
    shares = torch.zeros(1, 4, 12, 12)
    shares[:, 0, :6], shares[:, 1, 6:] = 1, 1
    shares[..., 10:] = 0  # outside the lung
    shares[:, :3, :, 4], shares[:, 3, :, 4] = 0, 1  # UNKNOWN
    soft = prior.soften(shares, prior.gaussian(1.5))
    assert torch.allclose(soft.sum(1), shares.sum(1), atol=1e-5)
    assert torch.equal(soft[:, 3], shares[:, 3]) and not soft[..., 10:].any() and not soft[:, :3, :, 4].any()
    steps = -soft[0, 0, :, 7].diff()
    assert (steps > -1e-5).all() and steps.max() < 0.35 and soft[0, 0, 0, 7] > 0.98


def test_a_blur_keeps_what_is_flat_far_from_the_edge_and_slices_apart():
    volume = torch.zeros(1, 2, 15, 15, 3)
    volume[:, 0, ..., 1] = 1
    blurred = prior.blur(volume, prior.gaussian(1.0))
    assert blurred.shape == volume.shape and blurred[0, 0, 7, 7, 1] == pytest.approx(1, abs=1e-5)
    assert not blurred[..., [0, 2]].any() and not blurred[:, 1].any()
