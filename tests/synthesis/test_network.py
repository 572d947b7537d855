"""The denoiser: MONAI's U-Net is the one of monai-generative, and the wrapper does what the zoo asks."""

import torch
from generative.networks.nets import DiffusionModelUNet as Reference
from monai.networks.nets import DiffusionModelUNet
from scripts.network import TissueDenoiser

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


def test_denoiser_in_bfloat16_stays_close_to_float32():
    torch.manual_seed(0)
    network = TissueDenoiser(channels=(16, 16), attention_levels=(False, False), num_head_channels=16).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(2, 8, 32, 32), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        fast = network(x, t)
        network.amp = False
        exact = network(x, t)
    assert fast.dtype == torch.float32 and fast.shape == (2, 1, 32, 32)
    assert (fast - exact).norm() / exact.norm() < 0.03


def test_time_defaults_to_pure_noise():
    network = TissueDenoiser(channels=(16, 16), attention_levels=(False, False), num_head_channels=16).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x), network(x, torch.ones(1)))
        assert not torch.equal(network(x), network(x, torch.zeros(1)))
