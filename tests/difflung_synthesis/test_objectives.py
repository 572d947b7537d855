"""What the network is asked to learn: the pair, the region, the weights, and what it is told."""

import math

import pytest
import torch
from scripts.ablation import ClassBalancedMaskAblation
from scripts.attributes import Attributes
from scripts.autoencoder import TissueAutoencoder
from scripts.network import TissueDenoiser
from scripts.objectives import (
    DenoisingObjective,
    FewStepObjective,
    FlowObjective,
    RegionMSELoss,
    TissuePrepareBatch,
    TrainingPair,
    draw_region,
    grow_at_random,
    measured_density,
    stratified_times,
)
from scripts.samplers import alpha_bars
from scripts.tissue_channels import DENSITY_GAIN, UNKNOWN, density_channels

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


class Recorder(torch.nn.Module):
    """Stand-in for the network in pixel space: keeps what it was given and answers with a function of it."""

    autoencoder = None

    def __init__(self, answer=lambda image, t, attributes, interval: torch.zeros_like(image[:, :1])):
        super().__init__()
        self.answer, self.calls = answer, []

    def encode(self, image):
        return image

    def decode(self, sample):
        return sample

    def pool(self, maps):
        return maps

    def forward(self, image, t, attributes=None, interval=None):
        self.calls.append((image, t, attributes, interval))
        return self.answer(image, t, attributes, interval)


def pair(samples=4, size=8):
    x_0 = torch.randn(samples, 1, size, size)
    region = (torch.rand(samples, 1, size, size) > 0.5).float()
    return x_0, region, torch.rand(samples, 3, size, size)


def test_noise_lives_in_the_region_only():
    x_0, region, condition = pair()
    network = Recorder()
    t = torch.tensor([0.3, 1.0, 0.0, 0.5])
    torch.manual_seed(0)
    error = FlowObjective()(x_0, network, t, region, condition)
    image = network.calls[0][0]
    x_t, inside = image[:, :1], region > 0
    assert torch.equal(x_t[~inside], x_0[~inside])
    noise = x_0 - error  # the network says 0, so the error is -(eps - x_0)
    noisy = (1 - t.view(-1, 1, 1, 1)) * x_0 + t.view(-1, 1, 1, 1) * noise
    assert torch.allclose(x_t[inside], noisy[inside], atol=1e-6)
    assert torch.equal(image[:, 1:2], region) and torch.equal(image[:, 2:], condition)


def test_the_true_velocity_has_no_error():
    x_0, region, condition = pair()
    noise = torch.randn_like(x_0)
    network = Recorder(lambda image, t, a, i: noise - x_0)
    t = torch.rand(4)
    torch.manual_seed(1)
    error = FlowObjective()(x_0, network, t, region, condition)
    torch.manual_seed(1)
    own = torch.randn_like(x_0)
    assert torch.allclose(error, noise - own, atol=1e-6)


def test_ddpm_noises_by_the_chain():
    x_0, region, condition = pair(2)
    network = Recorder()
    t = torch.tensor([0.0, 0.999])
    error = DenoisingObjective(1000)(x_0, network, t, torch.ones_like(region), condition)
    image, times = network.calls[0][:2]
    alpha_bar = alpha_bars(1000)[[0, 999]].float().view(-1, 1, 1, 1)
    assert torch.allclose(image[:, :1], alpha_bar.sqrt() * x_0 - (1 - alpha_bar).sqrt() * error, atol=1e-5)
    assert times.tolist() == pytest.approx([0.001, 1.0])


def test_few_step_asks_for_the_mean_of_two_half_steps():
    """For dx/dt = x the teacher's two steps are known, and steps start where a sampler's steps start."""
    torch.manual_seed(0)
    teacher = Recorder(lambda image, t, a, interval: image[:, :1])
    student = Recorder()
    x_0, region, condition = pair(8)
    region = torch.ones_like(region)
    objective = FewStepObjective(teacher, finest=4, share=0.5)
    error = objective(x_0, student, stratified_times(8), region, condition, torch.rand(8, 2))
    image, t, _, interval = student.calls[0]
    x_t, d = image[:4, :1], interval[:4].view(-1, 1, 1, 1)
    assert set(interval[:4].tolist()) <= {1.0, 0.5, 0.25}
    assert interval[4:].tolist() == [0, 0, 0, 0]
    assert torch.equal(t[:4] / interval[:4], (t[:4] / interval[:4]).round())
    middle = x_t - d / 2 * x_t
    assert torch.allclose(error[:4], -(x_t + middle) / 2, atol=1e-5)
    lengths = teacher.calls[0][3]
    assert torch.equal(lengths, torch.where(interval[:4] > 0.25, interval[:4] / 2, 0))
    assert teacher.calls[0][2].shape == (4, 2)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"finest": 6}, "finest must be a power of two of at least 2, not 6"),
    ({"share": 1.0}, "share must lie between 0 and 1, not 1.0"),
])  # fmt: skip
def test_impossible_second_stage_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FewStepObjective(None, **arguments)


def test_latent_surroundings_do_not_depend_on_what_the_region_held():
    torch.manual_seed(0)
    autoencoder = TissueAutoencoder(channels=(8, 8), latent_channels=2)
    autoencoder(torch.randn(2, 1, 16, 16))
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16, autoencoder=autoencoder).train()
    assert not network.autoencoder.training
    x_0, condition = torch.randn(2, 1, 16, 16), torch.rand(2, 6, 16, 16)
    region = torch.zeros_like(x_0)
    region[..., 4:9, 4:9] = 1
    other = torch.where(region > 0, torch.randn_like(x_0), x_0)
    first, second = (TrainingPair(image, network, region, condition) for image in (x_0, other))
    assert torch.equal(first.surroundings, second.surroundings)
    assert not torch.equal(first.x_0, second.x_0)
    assert first.region.shape == (2, 1, 8, 8) and first.region[0, 0, 2, 4] == 0.5
    error = FlowObjective()(x_0, network, torch.rand(2), region, condition)
    assert error.shape == (2, 2, 8, 8)
    RegionMSELoss()(error, region).backward()
    assert all(parameter.grad is None for parameter in network.autoencoder.parameters())


def test_times_cover_the_interval_evenly():
    times = stratified_times(16)
    assert torch.equal((times * 16).floor().sort().values, torch.arange(16.0))


def test_flow_learns_which_tissue_lies_where_none_is_told():
    """The cross-entropy counts in UNKNOWN only, and its gradient raises the odds of the true tissue."""
    torch.manual_seed(0)
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16)
    x_0, region = torch.randn(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    condition, tissues = torch.zeros(2, 6, 16, 16), torch.zeros(2, 3, 16, 16)
    condition[:, 3, :8] = condition[:, 0, 8:] = tissues[:, 1] = 1  # the upper half is UNKNOWN, in truth ground glass
    error, added = FlowObjective(0.5)(x_0, network, torch.ones(2), region, condition, tissues=tissues)
    assert error.shape == added.shape == x_0.shape
    assert torch.allclose(added[:, :, :8], torch.tensor(0.5 * math.log(3))) and not added[:, :, 8:].any()
    RegionMSELoss()((torch.zeros_like(error), added), region).backward()
    odds = network.unet.out[-1].conv.bias.grad[1:]
    assert odds[1] < 0 < odds[0] and odds[2] > 0
    with pytest.raises(ValueError, match="tissue_loss must be at least 0, not -1"):
        FlowObjective(-1)


def test_loss_ignores_what_lies_outside_the_region():
    error = torch.full((1, 1, 4, 4), 3.0)
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., :2] = 1
    assert RegionMSELoss()(error, weight).item() == pytest.approx(9)
    error[..., 2:] = 1e6
    assert RegionMSELoss()(error, weight).item() == pytest.approx(9)


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


def test_lung_of_which_no_tissue_is_told_is_the_region():
    torch.manual_seed(0)
    show_all = ClassBalancedMaskAblation(LABELS, q_min=1, q_max=1, rho=1, presence=[0.9, 0.5, 0.2])
    label = torch.zeros(3, 1, 8, 8, 1)
    label[:, :, 2:6] = -2.0
    label[:, :, 3] = -4.0
    _, weight, _, given = TissuePrepareBatch(LABELS, show_all, whole_probability=0)(
        {"image": torch.randn(3, 1, 8, 8, 1), "label": label}, "cpu"
    )
    lung = label[..., 0] != 0
    assert torch.equal(given["region"] > 0, lung) and torch.equal(weight > 0, lung)
    tissues, unknown, density = given["condition"].split([3, 1, 2], dim=1)
    assert torch.equal(unknown > 0, lung) and not tissues.any() and not density.any()
    assert torch.equal(
        given["tissues"] @ torch.ones(8),
        8 * torch.tensor([[0.0] * 8, [0, 0, 1, 0, 1, 1, 0, 0], [0, 0, 0, 1] + [0] * 4]).expand(3, 3, 8),
    )


def test_weights_of_tissues_that_are_told_are_the_loss_weights():
    torch.manual_seed(0)
    ablation = ClassBalancedMaskAblation(LABELS, presence=[0.9, 0.5, 0.2], rho=0, q_min=0.5)
    prepare = TissuePrepareBatch(LABELS, ablation, whole_probability=1.0, tissue_weights={"emphysema": 3.0})
    label = torch.randint(0, 3, (32, 1, 8, 8, 1)).float()
    label[label == 0] = 4
    image = torch.randn(32, 1, 8, 8, 1)
    x_0, weight, _, given = prepare({"image": image, "label": label}, "cpu")
    assert torch.equal(x_0, image.squeeze(-1))
    emphysema, told = label.squeeze(-1) == 4, given["condition"][:, 3:4] == 0
    assert torch.equal(weight == 3, emphysema & told) and (emphysema & ~told).any() and (weight[weight != 3] == 1).all()
    assert torch.equal(given["tissues"][:, 2:3] > 0, emphysema)  # what the network is asked for is never hidden
    assert given["condition"].shape == (32, 3 + 1 + 2, 8, 8) and not given["attributes"].any()
    blocks = prepare({"image": image.expand(-1, -1, -1, -1, 4), "label": label.expand(-1, -1, -1, -1, 4)}, "cpu")
    assert blocks[0].shape == (32, 1, 8, 8, 4)


def test_density_is_told_of_the_region_and_never_of_a_hidden_tissue():
    torch.manual_seed(0)
    hide_all = ClassBalancedMaskAblation(LABELS, q_min=0, q_max=0, rho=0, presence=[0.9, 0.5, 0.2])
    show_all = ClassBalancedMaskAblation(LABELS, q_min=1, q_max=1, rho=1, presence=[0.9, 0.5, 0.2])
    label = torch.ones(2, 1, 8, 8, 1)
    label[:, :, 4:] = 2
    image = torch.where(label == 2, 0.25, -0.5)
    for ablation, told in ((hide_all, 0), (show_all, 1)):
        prepare = TissuePrepareBatch(LABELS, ablation, whole_probability=1.0, density_unknown=0)
        density, known = prepare({"image": image, "label": label}, "cpu")[3]["condition"][:, -2:].unbind(1)
        assert known.unique().tolist() == [told]
        if told:
            assert torch.allclose(density, DENSITY_GAIN * image[:, 0, ..., 0])


def test_measured_density_is_the_mean_of_each_tissue():
    image = torch.tensor([[[[1.0, 3.0, -1.0]]]])
    density = measured_density(image, torch.tensor([[[[2.0, 2.0, 4.0]]]]), LABELS)
    assert math.isnan(density[0, 0]) and density[0, 1:].tolist() == [2.0, -1.0]
    channels = density_channels(torch.tensor([[[[1, 2, UNKNOWN, 0]]]]), torch.tensor([[math.nan, 0.5, 0.1]]), LABELS)
    assert channels[0, :, 0].tolist() == [[0, DENSITY_GAIN * 0.5, 0, 0], [0, 1, 0, 0]]


def test_attributes_are_dropped_whole_and_alone():
    torch.manual_seed(0)
    attributes = Attributes({"age": [0, 100], "history": ["none", "smoker"]})
    vectors = torch.tensor(attributes.encode({"age": 100, "history": "smoker"})).expand(4000, -1)
    dropped = attributes.drop(vectors)
    entries = list(attributes.sizes.values())
    given, kept = vectors.split(entries, dim=1), dropped.split(entries, dim=1)
    age, history = ((part != 0).any(1) for part in kept)
    for known, whole, part in zip((age, history), given, kept):
        assert torch.equal(part[known], whole[known])
    for known in (age & history, age ^ history, ~age & ~history):  # both, one, none
        assert known.float().mean() == pytest.approx(1 / 3, abs=0.03)
    prepare = TissuePrepareBatch(LABELS, lambda tissue_map: tissue_map, attributes=attributes)
    batch = {"image": torch.zeros(200, 1, 4, 4, 1), "label": torch.ones(200, 1, 4, 4, 1), "attributes": vectors[:200]}
    told = prepare(batch | {"scan": torch.full((200, 2), 0.5)}, "cpu")[3]["attributes"]
    assert ((told[:, :-4] == vectors[:200]) | (told[:, :-4] == 0)).all()
    assert set(told[:, -1].tolist()) == {0, 0.5}


def test_numbers_are_encoded_as_waves_over_their_range():
    attributes = Attributes({"age": [40, 80]})
    for age, waves in ((40, [1, 1, 1, 1]), (60, [0, -1, 0, 1]), (80, [-1, 1, -1, 1])):
        assert attributes.encode({"age": age}) == pytest.approx([1, *waves])
    assert attributes.encode({"age": None}) == [0] * attributes.size


@pytest.mark.parametrize(("value", "message"), [
    ({"age": 130}, "age of case7 is 130, but must be a number from 0 to 100, or empty"),
    ({"age": "old"}, "age of case7 is old, but must be a number"),
    ({"history": "miner"}, "history of case7 is miner, but must be one of none, smoker, or empty"),
])  # fmt: skip
def test_attribute_out_of_range_is_refused(value, message):
    attributes = Attributes({"age": [0, 100], "history": ["none", "smoker"]})
    with pytest.raises(ValueError, match=message):
        attributes.encode(value, "case7")


@pytest.mark.parametrize("allowed", [[3, 1], [], [1, 2, 3]])
def test_range_that_is_none_is_refused(allowed):
    with pytest.raises(ValueError, match="attribute age must be"):
        Attributes({"age": allowed})


def test_loss_on_a_coarser_grid_takes_a_cell_that_the_region_touches():
    weight = torch.zeros(1, 1, 4, 4)
    weight[0, 0, 0, 0] = 1
    error = torch.tensor([[[[2.0, 5.0], [5.0, 5.0]], [[4.0, 5.0], [5.0, 5.0]]]])
    assert RegionMSELoss()(error, weight).item() == pytest.approx((4 + 16) / 2)
    assert RegionMSELoss()((error, torch.ones_like(error)), weight).item() == pytest.approx((4 + 16) / 2 + 1)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tissue_weights": {"oedema": 2.0}}, r"tissue_weights name \['oedema'\]"),
    ({"density_unknown": 1.5}, "density_unknown must be a probability in .*, not 1.5"),
])  # fmt: skip
def test_impossible_preparation_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TissuePrepareBatch(LABELS, None, **arguments)


def test_the_region_of_training_is_wider_than_the_tissue_by_up_to_the_margin_and_stays_in_the_lung():
    tissue_map = torch.zeros(64, 1, 24, 24)
    tissue_map[..., 2:22, :] = 1
    tissue_map[..., 8:12, 8:12] = 2
    region = (tissue_map == 2).float()
    widths = grow_at_random(region, tissue_map, 4).flatten(2).sum(2).flatten()
    assert set(widths.tolist()) == {float((4 + 2 * margin) ** 2) for margin in range(5)}
    assert (grow_at_random(region, tissue_map * (tissue_map == 2), 4) == region).all()
    assert torch.equal(region, (tissue_map == 2).float())
