"""The denoiser: MONAI's U-Net is the one of monai-generative, and weights of another kind are refused."""

import json

import pytest
import torch
from generative.networks.nets import DiffusionModelUNet as Reference
from monai.bundle import ConfigParser
from monai.networks.nets import DiffusionModelUNet
from scripts import samplers
from scripts.attributes import Attributes
from scripts.autoencoder import TissueAutoencoder
from scripts.network import BLOCK, TissueDenoiser, coarse_means, stored_kind
from scripts.prior import COMPONENTS, moments
from scripts.prior_weights import WIDTH
from scripts.tissue_channels import DENSITY_GAIN

from tools.bundles import BUNDLES

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4, "consolidation": 5}
ATTRIBUTES = {"age": [0, 120], "history": ["none", "smoker"]}

TINY = {"num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 8, "num_head_channels": 8}


def test_the_unet_agrees_with_monai_generative():
    """monai-generative defines ``proj_attn`` but never applies it; as the identity it changes nothing in the core."""
    shape = {"spatial_dims": 2, "in_channels": 3, "out_channels": 1}
    reference = Reference(**shape, num_channels=(8, 16), **TINY).eval()
    network = DiffusionModelUNet(**shape, channels=(8, 16), **TINY).eval()
    torch.manual_seed(0)
    weights = {key: torch.randn_like(value) * 0.1 for key, value in reference.state_dict().items()}
    for key in weights:
        if "proj_attn" in key:
            weights[key] = torch.eye(16) if key.endswith("weight") else torch.zeros(16)
    reference.load_state_dict(weights)
    network.load_old_state_dict(weights)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert reference(x, t).std() > 0.01
        assert torch.allclose(network(x, t), reference(x, t), atol=1e-6)


def denoiser(**settings):
    """Return a tiny denoiser with random weights, in evaluation mode."""
    torch.manual_seed(0)
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16, **settings).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_denoiser_in_bfloat16_stays_close_to_float32():
    network = denoiser()
    x, t = torch.randn(2, 10, 32, 32), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        fast = network(x, t)
        network.amp = False
        exact = network(x, t)
    assert fast.dtype == torch.float32 and fast.shape == (2, 1, 32, 32)
    assert (fast - exact).norm() / exact.norm() < 0.05


def told(patient, *scan):
    return torch.tensor([[*Attributes(ATTRIBUTES).encode(patient), *scan]])


def test_what_is_not_given_is_pure_noise_with_nothing_known():
    network = denoiser(attributes=ATTRIBUTES)
    x = torch.randn(1, 10, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x), network(x, torch.ones(1), told({}, 0, 0, 0, 0), torch.zeros(1)))
        assert not torch.equal(network(x), network(x, torch.zeros(1)))
        assert not torch.equal(network(x), network(x, attributes=told({"age": 40, "history": "smoker"}, 0, 0, 0, 0)))
        assert not torch.equal(network(x), network(x, attributes=told({}, 1, 0.5, 0, 0)))
        assert not torch.equal(network(x), network(x, interval=torch.ones(1)))


def test_attributes_and_interval_start_without_influence():
    torch.manual_seed(0)
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16, attributes=ATTRIBUTES).eval()
    torch.nn.init.normal_(network.unet.out[-1].conv.weight)
    network.tissue_prior, x = False, torch.randn(2, 13, 16, 16)  # the prior knows the interval
    with torch.no_grad():
        everything = torch.ones(2, network.attribute_entries)
        assert network(x).std() > 0
        assert torch.equal(network(x), network(x, attributes=everything, interval=torch.ones(2)))


def mapped(value, size=24, density=None):
    """Return what is known of a patch whose every voxel is one tissue: region, tissues, UNKNOWN, density, known."""
    known = torch.zeros(1, 9, size, size)
    known[:, 0] = known[:, value] = 1
    if density is not None:
        known[:, 7], known[:, 8] = DENSITY_GAIN * density, 1
    return known


@pytest.mark.parametrize("sampler", ["heun", "few_step"])
@pytest.mark.parametrize(("density", "mean"), [(None, -0.5), (0.2, 0.2)])
def test_untrained_network_paints_the_density_and_contrast_of_the_tissue(sampler, density, mean):
    """The prior is exact for independent voxels; a few-step network needs one evaluation for them."""
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16, objective="few_step").eval()
    network.tissue_mean[0, 2], network.tissue_deviation[0, 2] = -0.5 * 4, 0.1 * 4  # data_scale is 4
    known = mapped(3, 64, density)

    def answer(x, t, interval=None):
        steps = None if interval is None else torch.tensor([interval])
        with torch.no_grad():
            return network(torch.cat([x, known], dim=1), torch.tensor([t]), interval=steps)

    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    painted = network.decode(getattr(samplers, sampler)(answer, noise, {"heun": 30, "few_step": 1}[sampler]))
    assert painted.mean().item() == pytest.approx(mean, abs=0.004)
    assert painted.std().item() == pytest.approx(0.1, abs=0.004)


def test_patient_changes_the_histogram_of_a_tissue_but_not_a_density_that_is_told():
    torch.manual_seed(0)
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16, attributes=ATTRIBUTES).eval()
    network.tissue_mean[0, 2] = torch.linspace(-1, 1, COMPONENTS)
    first, _, last = network.patient_logits
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        first.weight[:, -5] = 1  # smoker
        last.weight[:-10].view(-1, COMPONENTS, WIDTH)[:, COMPONENTS // 2 :] = 0.2  # the last are shares of tissues
    means = []
    for known in (mapped(3), mapped(3, density=0.1)):
        for given in (told({}, 0, 0, 0, 0), told({"history": "smoker"}, 0, 0, 0, 0)):
            means.append(moments(*network.components(known, given))[0].mean().item())
    assert means[0] == pytest.approx(0, abs=1e-6) and means[1] > 0.3  # the denser half of the components counts more
    assert means[2:] == pytest.approx([0.4, 0.4], abs=1e-4)  # data_scale is 4


def test_what_the_unet_makes_of_unknown_lung_is_the_tissue_that_is_painted():
    """Shares are the answer at t = 1 of a network that knows no better; log odds turn it to one tissue."""
    network = TissueDenoiser(LABELS, channels=(16, 16), num_head_channels=16).eval()
    network.tissue_mean[0] = torch.tensor([-3.0, 0.0, 3.0, 0.0, 3.0])[:, None] + torch.linspace(-0.1, 0.1, COMPONENTS)
    network.tissue_deviation[:] = 0.1
    shares = torch.tensor([0.7, 0.1, 0.05, 0.1, 0.05])
    with torch.no_grad():
        network.patient_logits[-1].bias[-5:] = shares.log()
    noise = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    unknown, ground_glass = mapped(6), mapped(2)
    with torch.no_grad():
        velocity, tissues = network(torch.cat([noise, unknown], dim=1), return_tissues=True)
        assert torch.allclose(tissues.exp()[0, 0], shares.view(5, 1, 1).expand(5, 24, 24), atol=1e-5)
        assert torch.allclose(noise - velocity, torch.tensor(-1.8), atol=0.01)  # x_0 that is expected
        of_told = network(torch.cat([noise, ground_glass], dim=1))
        network.unet.out[-1].conv.bias[-5:] = torch.tensor([0.0, 0.0, 12.0, 0.0, 0.0])
        velocity, tissues = network(torch.cat([noise, unknown], dim=1), return_tissues=True)
        assert (tissues.exp()[:, :, 2] > 0.999).all()
        assert torch.allclose(noise - velocity, torch.tensor(3.0), atol=0.02)
        assert torch.equal(network(torch.cat([noise, ground_glass], dim=1)), of_told)  # what is told is not weighed


def test_more_tissues_than_the_prior_holds_are_refused():
    labels = {str(value): value for value in range(COMPONENTS + 2)}
    with pytest.raises(ValueError, match=f"holds {COMPONENTS} tissues at most, but labels name {COMPONENTS + 1}"):
        TissueDenoiser(labels, channels=(16, 16), num_head_channels=16)
    TissueDenoiser(labels, channels=(16, 16), num_head_channels=16, tissue_prior=False)


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 12)])
def test_coarse_means_are_of_a_tissue_and_of_a_block_inside_the_region(shape):
    known = torch.zeros(1, 9, *shape)
    known[:, 0, :, :20] = 1  # the region
    known[:, 1, :8], known[:, 2, 8:] = 1, 1  # two tissues, of which the region leaves the edge
    surprise = torch.zeros(1, 1, *shape)
    surprise[:, :, :8, :20], surprise[:, :, 8:, :20] = 0.5, -1.0
    over_tissue, over_block = coarse_means(surprise, known)
    expected = BLOCK * surprise
    assert torch.allclose(over_tissue, expected)
    assert torch.allclose(over_block[:, :, :4], expected[:, :, :4] / 2)  # blocks of one tissue, away from the other's
    assert (over_block[:, :, :, 20:] == 0).all() and over_block.abs().max() <= BLOCK / 2
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([torch.ones(1, 2, 64, 64), torch.zeros(1, 7, 64, 64)], dim=1)
    means = coarse_means(noise, whole)
    assert means[0].std() < 1e-6 and means[0].mean().item() == pytest.approx(BLOCK * noise.mean().item(), abs=1e-5)
    assert 0.2 < means[1].std().item() < 0.5  # not drowned: blocks of 64 voxels deviate by 1/8


@pytest.mark.parametrize("dims", [2, 3])
def test_latent_network_works_on_a_coarser_grid(dims):
    autoencoder = TissueAutoencoder(spatial_dims=dims, channels=(8, 8, 8), latent_channels=3)
    x = torch.randn(1, 1, *[16] * dims)
    with pytest.raises(RuntimeError, match="the autoencoder has no trained weights"):
        autoencoder.encode(x)
    for _ in range(3):
        autoencoder(x)
    latent = autoencoder.encode(x)
    assert latent.shape == (1, 3, *[4] * dims)
    assert latent.flatten(2).std(dim=2).allclose(torch.ones(3), atol=0.1)  # the latent scale is in the weights
    network = denoiser(spatial_dims=dims, autoencoder=autoencoder)
    assert network.stride == 8
    assert network(torch.randn(1, 3 + 9, *[4] * dims)).shape == (1, 3, *[4] * dims)


def changed(state, **kind):
    kind = stored_kind(state["_extra_state"]) | kind
    return state | {"_extra_state": torch.tensor(list(json.dumps(kind).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(("kind", "message"), [
    ({"label scheme": {"background": 0, "scar": 1}}, "trained for label scheme {'background': 0, 'scar': 1}, but"),
    ({"dimension": 3}, "trained for dimension 3, but the configuration has 2"),
    ({"space": "latent, downsampling 4"}, "space latent, downsampling 4, but the configuration has pixel, scale 4"),
    ({"objective": "ddpm"}, "trained for objective ddpm, but the configuration has flow"),
])  # fmt: skip
def test_weights_of_another_kind_are_refused(kind, message, tmp_path):
    network = denoiser()
    torch.save(changed(network.state_dict(), **kind), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_the_second_stage_starts_from_a_flow_but_not_the_other_way_round():
    flow, few_step = denoiser(), denoiser(objective="few_step")
    few_step.load_state_dict(flow.state_dict())
    with pytest.raises(ValueError, match="trained for objective few_step, but the configuration has flow"):
        flow.load_state_dict(few_step.state_dict())


def test_foreign_weights_and_objectives_are_refused():
    with pytest.raises(ValueError, match="these weights are not the synthesizer's"):
        denoiser().load_state_dict({"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="these weights are not the synthesizer's"):
        denoiser().load_state_dict(denoiser().state_dict() | {"_extra_state": {"dimension": 2}})  # of an early 0.2.0
    with pytest.raises(ValueError, match="objective must be one of flow, few_step, ddpm, not gan"):
        TissueDenoiser(LABELS, objective="gan")


@pytest.mark.parametrize("overlay", ["evaluate.json", "fine_tune.yaml", "few_step.yaml"])
def test_weights_with_attributes_of_their_own_are_used_without_being_told_them(overlay, tmp_path):
    root, own = BUNDLES / "difflung_synthesis", {"age": [20, 90]}
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "train.json"))
    parser.update({"attributes": own, "bundle_root": str(root)})
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / "train.json"), str(root / "configs" / overlay)])
    parser.update({"start": str(tmp_path / "model.pt"), "checkpoint": str(tmp_path / "model.pt")})
    network = parser.get_parsed_content("network_def")
    assert network.attributes.ranges == own


def test_a_border_blur_that_is_given_stays_whatever_the_weights_were_trained_with():
    network, other = denoiser(border_blur=1.5), denoiser(border_blur=2.5)
    other.load_state_dict(network.state_dict())
    assert other.border_blur == 2.5 and other.kind()["border blur"] == 2.5
    with pytest.raises(ValueError, match="border_blur must be at least 0 voxels, not -1"):
        denoiser(border_blur=-1)
