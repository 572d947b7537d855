"""The autoencoder: its latent has a scale of its own, and what it alone loses is measured in the region."""

import pytest
import torch
from monai.data import MetaTensor
from scripts.autoencoder import AutoencoderLoss, AutoencoderPrepareBatch, ReconstructInferer, TissueAutoencoder


def trained(dims=2):
    torch.manual_seed(0)
    network = TissueAutoencoder(spatial_dims=dims, channels=(8, 8), latent_channels=2, momentum=0.5)
    for _ in range(6):
        network(3 * torch.randn(4, 1, *[16] * dims))
    return network.eval()


def test_latent_scale_is_measured_in_training_and_kept_in_the_weights(tmp_path):
    network = trained()
    torch.save(network.state_dict(), tmp_path / "autoencoder.pt")
    again = TissueAutoencoder(channels=(8, 8), latent_channels=2, weights=str(tmp_path / "autoencoder.pt")).eval()
    image = 3 * torch.randn(8, 1, 16, 16)
    latent = again.encode(image)
    assert torch.equal(latent, network.encode(image))
    assert latent.transpose(0, 1).flatten(1).std(dim=1).tolist() == pytest.approx([1, 1], abs=0.15)
    with torch.no_grad():
        assert torch.allclose(again.decode(latent), network.autoencoder.decode(network(image)[1]), atol=1e-4)
    before = network.latent_deviation.clone()
    network(image)
    assert torch.equal(network.latent_deviation, before)  # evaluation measures nothing


def test_missing_weights_are_an_error():
    with pytest.raises(FileNotFoundError, match="none.pt"):
        TissueAutoencoder(weights="none.pt")


def test_loss_adds_the_divergence_from_a_normal_distribution():
    image, mean = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 2, 2), 2.0)
    output = (image + 0.25, mean, torch.ones_like(mean))
    assert AutoencoderLoss(0.0)(output, image).item() == pytest.approx(0.25)
    assert AutoencoderLoss(0.1)(output, image).item() == pytest.approx(0.25 + 0.1 * 2)


def test_patches_of_one_slice_become_two_dimensional():
    batch = {"image": MetaTensor(torch.rand(2, 1, 8, 8, 1))}
    image, target = AutoencoderPrepareBatch()(batch, "cpu")
    assert image.shape == (2, 1, 8, 8) and target is image
    assert AutoencoderPrepareBatch()({"image": torch.rand(2, 1, 8, 8, 4)}, "cpu")[0].shape == (2, 1, 8, 8, 4)


@pytest.mark.parametrize("dims", [2, 3])
def test_only_the_region_is_reconstructed(dims):
    affine = torch.diag(torch.tensor([-1.0, 1, 3, 1])).double()
    image = MetaTensor(torch.randn(1, 1, 40, 36, 8), affine=affine)
    region = torch.zeros(1, 1, 40, 36, 8)
    region[..., 5:30, 5:30, 2:6] = 1
    result = ReconstructInferer((16, 16, 1 if dims == 2 else 8))(image, trained(dims), region, seeds=[0])
    assert torch.equal(result.affine, affine)
    outside = region == 0
    assert torch.equal(result.as_tensor()[outside], image.as_tensor()[outside])
    assert (result.as_tensor()[~outside] != image.as_tensor()[~outside]).float().mean() > 0.99
