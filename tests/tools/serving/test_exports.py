"""Exports answer as before and no longer name this machine's folders."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tools.serving.exports import strip_onnx, strip_torchscript

HERE = str(Path(__file__).parent).encode()


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(image))


def contents(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        return b"".join(file.read(name) for name in file.namelist())


def test_torchscript_names_no_folder_and_answers_as_before(tmp_path):
    path, image = tmp_path / "model.ts", torch.rand(1, 1, 8, 8)
    network = torch.jit.script(Network())
    network.save(path, _extra_files={"metadata.json": "{}"})
    assert HERE in contents(path)
    strip_torchscript(path)
    kept = {"metadata.json": ""}
    assert HERE not in contents(path)
    assert torch.equal(torch.jit.load(path, _extra_files=kept)(image), network(image))
    assert kept["metadata.json"] == b"{}"


@pytest.mark.slow
def test_onnx_names_no_folder_and_answers_as_before(tmp_path):
    path, image, network = tmp_path / "model.onnx", torch.rand(1, 1, 8, 8), Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), path, dynamo=True, external_data=False, input_names=["image"])
    assert HERE in path.read_bytes()
    strip_onnx(path)
    assert HERE not in path.read_bytes()
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {"image": image.numpy()})[0]
    assert np.allclose(found, network(image).detach().numpy(), atol=1e-6)
