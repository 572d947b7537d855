"""Leaving Python: a traced or exported denoiser gives what the eager one gives, and weights load without pickle."""

import numpy as np
import pytest
import torch
from scripts.network import TissueDenoiser, known_channels, stored_kind

from tools.scheme import tissue_labels

LABELS = tissue_labels()
ATTRIBUTES = {"severity": [0, 1], "history": ["none", "smoker"]}


def denoiser() -> TissueDenoiser:
    """Return a small network with attention and random weights everywhere."""
    torch.manual_seed(0)
    network = TissueDenoiser(
        LABELS,
        attributes=ATTRIBUTES,
        channels=(16, 32),
        attention_levels=(False, True),
        num_head_channels=16,
        amp=False,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs(batch: int, edge: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and timesteps."""
    return torch.randn(batch, 1 + known_channels(LABELS), edge, edge), torch.rand(batch)


@torch.no_grad()
def test_traced_network_gives_the_same_for_other_inputs_and_batches():
    network = denoiser()
    traced = torch.jit.trace(network, inputs(2), check_trace=False)
    for batch in (1, 2, 5):
        image, timesteps = inputs(batch)
        expected = network(image, timesteps)
        assert expected.shape == (batch, 1, 16, 16) and expected.std() > 0.01
        assert torch.allclose(traced(image, timesteps), expected, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_traced_network_survives_its_file(tmp_path):
    network = denoiser()
    torch.jit.trace(network, inputs(1), check_trace=False).save(tmp_path / "model.ts")
    image, timesteps = inputs(3)
    loaded = torch.jit.load(tmp_path / "model.ts")
    expected = network(image, timesteps)
    assert torch.allclose(loaded(image, timesteps), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_onnx_gives_the_same_for_other_inputs_and_batches(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, path = denoiser(), tmp_path / "model.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        network, inputs(2), path, dynamo=True, input_names=["image", "timesteps"], output_names=["pred"],
        dynamic_shapes={"image": {0: batch}, "timesteps": {0: batch}},
    )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["image", "timesteps"]
    assert [entry.name for entry in session.get_outputs()] == ["pred"]
    for samples in (1, 2, 5):
        image, timesteps = inputs(samples)
        expected = network(image, timesteps).numpy()
        given = session.run(["pred"], {"image": image.numpy(), "timesteps": timesteps.numpy()})[0]
        assert np.abs(given - expected).max() < 1e-4 * np.abs(expected).max()


@torch.no_grad()
def test_saved_weights_load_without_running_code(tmp_path):
    network, other = denoiser(), denoiser()
    torch.nn.init.zeros_(other.unet.conv_in.conv.weight)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert stored_kind(weights["_extra_state"])["label scheme"] == LABELS
    other.load_state_dict(weights)
    image, timesteps = inputs(1)
    assert torch.equal(other(image, timesteps), network(image, timesteps))
