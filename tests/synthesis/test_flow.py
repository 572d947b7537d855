"""The flow against closed forms: for Gaussian data the optimal velocity is known, so the sampler has a known answer."""

import pytest
import torch
from scripts.ablation import ClassBalancedMaskAblation
from scripts.flow import FlowInferer, FlowPrepareBatch, RegionMSELoss, draw_region, euler, interpolate, stratified_times

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


def gaussian_velocity(mean, deviation):
    """E[eps - x_0 | x_t = x] for x_0 ~ N(mean, deviation^2), eps ~ N(0, 1), x_t = (1 - t) x_0 + t eps."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * deviation**2 + t**2
        centred = x - (1 - t) * mean
        return (t - (1 - t) * deviation**2) / variance * centred - mean

    return velocity


def test_euler_returns_the_mean_and_deviation_of_gaussian_data():
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x_0 = euler(gaussian_velocity(-0.6, 0.2), noise, num_steps=200)
    assert x_0.mean().item() == pytest.approx(-0.6, abs=0.003)
    assert x_0.std().item() == pytest.approx(0.2, abs=0.003)


def test_euler_converges_at_first_order():
    noise = torch.linspace(-2, 2, 101, dtype=torch.float64)
    exact = -0.6 + 0.2 * noise  # the flow between two Gaussians maps quantiles to quantiles
    errors = [(euler(gaussian_velocity(-0.6, 0.2), noise, n) - exact).abs().max().item() for n in (40, 80, 160)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


def test_a_straight_flow_needs_one_step():
    target, noise = torch.randn(50), torch.randn(50)
    assert torch.allclose(euler(lambda x, t: noise - target, noise, 1), target, atol=1e-6)


def test_fewer_than_one_step_is_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1, not 0"):
        euler(lambda x, t: x, torch.zeros(1), 0)


def test_noise_lives_in_the_region_only():
    x_0, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    region = (torch.rand(2, 1, 8, 8) > 0.5).float()
    x_t = interpolate(x_0, noise, torch.tensor([0.3, 1.0]), region)
    outside = region == 0
    assert torch.equal(x_t[outside], x_0[outside])
    assert torch.equal(x_t[1][~outside[1]], noise[1][~outside[1]])
    assert torch.allclose(x_t[0][~outside[0]], (0.7 * x_0 + 0.3 * noise)[0][~outside[0]])


def test_times_cover_the_interval_evenly():
    times = stratified_times(16)
    assert torch.equal((times * 16).floor().sort().values, torch.arange(16.0))


def test_loss_ignores_what_lies_outside_the_region():
    velocity, wanted = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 3.0)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., :2] = 1
    loss = RegionMSELoss()
    assert loss(velocity, torch.cat([wanted, weight], 1)).item() == pytest.approx(9)
    wanted[..., 2:] = 1e6
    assert loss(velocity, torch.cat([wanted, weight], 1)).item() == pytest.approx(9)


def test_region_is_a_union_of_whole_tissues():
    tissue_map = torch.zeros(200, 1, 6, 6, dtype=torch.long)
    tissue_map[:, 0, 1] = 1
    tissue_map[:, 0, 2] = 2
    tissue_map[:, 0, 3] = 4
    region = draw_region(tissue_map, LABELS, whole_probability=0.2)
    rows = region[:, 0, :, 0]
    assert torch.equal(region[:, 0], rows.unsqueeze(-1).expand(-1, 6, 6))  # whole tissues
    assert rows[:, [0, 4, 5]].sum() == 0  # never background
    assert (rows.sum(1) >= 1).all()
    assert (rows.sum(1) == 3).float().mean() > 0.15
    assert draw_region(torch.zeros(1, 1, 4, 4), LABELS, 0.2).sum() == 0


def test_training_pair_asks_for_the_velocity_with_tissue_weights():
    torch.manual_seed(0)
    ablation = ClassBalancedMaskAblation(LABELS, presence=[0.9, 0.5, 0.2])
    prepare = FlowPrepareBatch(LABELS, ablation, whole_probability=1.0, tissue_weights={"emphysema": 3.0})
    label = torch.randint(0, 3, (4, 1, 8, 8)).float()
    label[label == 0] = 4
    image = torch.randn(4, 1, 8, 8)
    x_0, target, _, given = prepare({"image": image, "label": label}, "cpu")
    assert torch.allclose(target[:, :1], given["noise"] - x_0)
    assert torch.equal(target[:, 1:] == 3, label == 4)
    seen = {}

    def network(stacked, t):
        seen.update(stacked=stacked, t=t)
        return stacked[:, :1]

    FlowInferer()(x_0, network, **given)
    assert seen["stacked"].shape == (4, 1 + 1 + 3 + 1, 8, 8)
    assert torch.equal(seen["stacked"][:, 1:2], given["region"])


def test_weight_of_an_unnamed_tissue_is_refused():
    with pytest.raises(ValueError, match=r"tissue_weights name \['oedema'\]"):
        FlowPrepareBatch(LABELS, None, tissue_weights={"oedema": 2.0})
