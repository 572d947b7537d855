"""Leaving Python: a traced or exported denoiser gives what the eager one gives, and weights load without pickle."""

import numpy as np
import pytest
import torch
from scripts.autoencoder import TissueAutoencoder
from scripts.export import export
from scripts.network import TissueDenoiser, known_channels, stored_kind
from scripts.triton_network import TritonDenoiser

from tools.tissues import tissue_labels

LABELS = tissue_labels()
ATTRIBUTES = {"severity": [0, 1], "history": ["none", "smoker"]}


def denoiser(objective: str = "flow") -> TissueDenoiser:
    """Return a small network with attention and random weights everywhere."""
    torch.manual_seed(0)
    network = TissueDenoiser(
        LABELS,
        attributes=ATTRIBUTES,
        objective=objective,
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
def test_exported_files_give_the_same_for_other_inputs_batches_and_sides(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network = denoiser(objective="few_step")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    export(denoiser(objective="few_step"), *(str(tmp_path / name) for name in ("model.pt", "model.ts", "model.onnx")))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    assert names == ["image", "timesteps", "attributes", "interval"]
    assert [entry.name for entry in session.get_outputs()] == ["pred"]
    loaded = torch.jit.load(tmp_path / "model.ts")
    for batch, edge in ((1, 16), (2, 20), (5, 8)):
        attributes, interval = torch.randn(batch, network.attribute_entries), torch.rand(batch)
        given = (*inputs(batch, edge), attributes, interval)
        expected = network(*given)
        assert not torch.allclose(network(*given[:2]), expected, atol=1e-3)  # they matter
        assert torch.allclose(loaded(*given), expected, atol=1e-5 * float(expected.abs().max()))
        found = session.run(["pred"], {name: value.numpy() for name, value in zip(names, given)})[0]
        assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()


def test_export_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt does not exist; train the network before it is exported"):
        export(denoiser(), "nowhere.pt", str(tmp_path / "model.ts"), str(tmp_path / "model.onnx"))


def test_latent_model_is_not_painted_by_triton():
    with pytest.raises(ValueError, match="a latent model cannot paint by Triton"):
        TritonDenoiser("localhost:8001", "model", labels=LABELS, autoencoder=TissueAutoencoder())


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


def test_weights_bring_the_border_blur_they_were_trained_with(monkeypatch):
    network, other = denoiser(), denoiser()
    network.set_border_blur(1.5)
    other.load_state_dict(network.state_dict())
    assert other.border_blur == 1.5
    kind = network.kind()
    del kind["border blur"]  # as earlier weights tell themselves
    monkeypatch.setattr(network, "kind", lambda: kind)
    other.load_state_dict(network.state_dict())
    assert other.border_blur == 0
